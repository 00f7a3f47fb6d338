"""DeepSpeed ZeRO: one engine per trained model, the same code at every stage."""
