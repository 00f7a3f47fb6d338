"""Writes a report of a run: its folder is read, drawn, and written as a single HTML file."""
