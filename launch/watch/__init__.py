"""Watches a running run from outside: reads its folder or its job's log, and shows it as a picture or as lines."""
