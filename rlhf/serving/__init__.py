"""Decisions about production: the gate, the registry of artefacts, the model card, and the gateway's rules."""
