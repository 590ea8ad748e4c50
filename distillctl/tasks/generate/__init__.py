"""All that only `task.kind: generate` knows: the response is a text."""
