"""What runs a model to measure it."""
