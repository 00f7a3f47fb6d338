"""The models of RLHF at work: what one rank of each role does. No Ray in here; ``actors/`` gives each its process."""
