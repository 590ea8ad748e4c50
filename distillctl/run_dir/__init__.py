"""The run directory: what tells it from any other folder, how files are written durably, and what stages record."""
