"""``rlhf gate``: decides whether a candidate may go one step on."""
