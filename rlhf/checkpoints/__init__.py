"""What a run needs to go on where it ended: checkpoints that are on the disk whole, or not at all."""
