"""Files that survive a kill: atomic writes, and JSON lines."""
