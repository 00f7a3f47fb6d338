"""Decisions about production: the gate, the registry of artefacts, and the model card."""
