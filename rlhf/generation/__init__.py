"""vLLM: answers to prompts, with the log-probability of every sampled token."""
