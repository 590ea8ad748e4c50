"""The optimizer loop and its checkpoints."""
