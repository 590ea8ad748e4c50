"""The stages of `task.kind: classify`: the response is one of several labels."""
