"""Divergences between teacher and student, and the loss built from them: the only implementation of the mathematics."""
