"""Human feedback: the labelling page, and the commands of a project."""
