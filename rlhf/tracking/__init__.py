"""Records and shows a run: its folder, metrics, samples, events, timeline, progress display, W&B, plots."""
