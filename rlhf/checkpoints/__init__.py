"""Atomic checkpoints, from which a run resumes."""
