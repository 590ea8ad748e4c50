"""Rows, views of them, and batches."""
