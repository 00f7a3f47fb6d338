"""Which role runs on which GPUs: what a recipe asks for, how roles share, and what the machine or cluster has."""
