"""What a step costs, beside the same work without a trainer."""
