"""All that only `task.kind: classify` knows: the response is one of several labels."""
