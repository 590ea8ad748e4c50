"""Where the student comes from."""
