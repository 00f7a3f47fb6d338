"""Keys with values that are in one passage each: what training on answers from passages (RAFT) is worth."""
