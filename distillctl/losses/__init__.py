"""Distances between teacher and student; the one implementation of the mathematics."""
