"""Read rows, render views of them, and plan batches."""
