"""Human data: read from files, checked row by row, turned into tokens, split by prompt and put in order."""
