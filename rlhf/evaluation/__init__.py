"""Whether people would now prefer the model: judges, blind comparisons and what their numbers can bear."""
