"""Pure logic of failure handling: actor states, deadlines, diagnosis, restart budget, retries, goodput, stop requests.

It starts and restarts no actor; times are passed in by the caller.
"""
