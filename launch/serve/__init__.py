"""``rlhf serve`` (the gateway in front of vLLM servers) and ``rlhf batch``."""
