"""Files that survive a kill: atomic writes, and lines of JSON."""
