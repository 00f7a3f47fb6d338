"""``rlhf registry``: which artefact is in which stage on the way to production."""
