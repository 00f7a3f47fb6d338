"""The networks: what a policy, a critic and a reward model compute, over packed rows."""
