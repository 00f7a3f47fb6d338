"""What can be decided about failures without a process: who may serve, when an answer is late, why, and what follows.

Nothing here starts, stops or restarts anything, and nobody here looks at a clock: moments are handed in.
"""
