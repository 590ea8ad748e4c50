"""The run directory: how it is recognised, how files are written durably, and what stages record."""
