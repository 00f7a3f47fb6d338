"""Evaluation of models: scorers, blind comparisons, and confidence intervals of the results."""
