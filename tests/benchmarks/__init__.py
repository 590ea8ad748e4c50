"""What `make bench-…` measures, each beside the plain way of doing the same."""
