"""What a run will need, before it runs: places, memory, time and batches, from the recipe and a model's shape alone."""
