"""How a run is distributed: one Ray actor per rank, groups of them, placement, and the loops that drive them.

Contains no RL mathematics (see ``rlhf/algorithms/``).
"""
