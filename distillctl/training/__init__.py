"""Train models: the optimizer loop and its checkpoints."""
