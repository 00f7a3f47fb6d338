"""Human feedback: the store of votes, who labels which item next, agreement and quality, and what the votes say."""
