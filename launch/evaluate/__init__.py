"""``rlhf evaluate``: a reward model against people's votes, and arms against each other."""
