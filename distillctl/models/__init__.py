"""Models as files: where they come from, what their files say before any is loaded, and how transformers takes them."""
