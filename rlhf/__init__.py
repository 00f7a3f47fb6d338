"""What RLHF is: data, models, algorithms, the ZeRO engine, the vLLM engine, weights, tracking, evaluation.

Nothing in this package imports Ray: everything here runs, and is tested, in one process.
"""
