"""DeepSpeed ZeRO: one engine per model, the same code for every stage."""
