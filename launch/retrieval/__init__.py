"""``rlhf retrieval``: training data, index and answers from passages."""
