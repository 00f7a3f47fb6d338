"""What is written down and shown while a run goes on: its folder, metrics, samples, events, W&B, progress and plots."""
