"""The stages of `task.kind: generate`: the response is text."""
