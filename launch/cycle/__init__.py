"""``rlhf cycle``: rounds from votes to a candidate in shadow."""
