"""Measure distances between teacher and student. This is the only implementation of the mathematics."""
