"""How a run starts and is watched: the command line, and the checks before anything starts."""
