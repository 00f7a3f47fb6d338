"""One page that tells what a run did: its folder is read, drawn and written as a single HTML file."""
