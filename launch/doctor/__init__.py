"""Is this machine fit to run: facts are gathered, a subject at a time, and judged by functions of facts alone.

Nothing here starts Ray, writes a file or changes a setting.
"""
