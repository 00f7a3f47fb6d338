"""Answers from passages (RAFT, Zhang et al. 2024, arXiv:2403.10131): index, training data, prompts, form of answers."""
