"""The labelling page, where people compare answers, and the commands of ``rlhf feedback``."""
