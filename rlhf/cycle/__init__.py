"""Rounds from votes to a candidate in shadow: their journal, and what it says about the next step."""
