"""The bundle for an app, which `distillctl export RECIPE --bundle` makes."""

from __future__ import annotations

from distillctl.recipe.base import Section


class Bundle(Section):
    """The bundle for an app, which `distillctl export RECIPE --bundle` makes."""

    text_in: bool = False
    """Add a graph that takes text and contains its tokenizer (onnxruntime-extensions), as `--text-in` does. For
    `task.kind: classify`."""
