"""A run while it goes on, seen from outside: its folder or its job's log as values, as a picture, as lines."""
