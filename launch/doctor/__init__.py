"""Checks whether machines are fit for a run: facts are gathered by subject, and checks are functions of facts alone.

Nothing here starts Ray, writes a file or changes a setting.
"""
