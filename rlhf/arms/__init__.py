"""Comparison of arms, models or methods, on the same items: their answers, metrics, people's votes, and one table."""
