"""Find models and read their files: where they come from, what the files say before loading, and how to load them."""
