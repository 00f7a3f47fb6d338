"""Files of human feedback: each format's rows as items, votes and thumbs. One file per family of formats."""
