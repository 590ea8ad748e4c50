"""What an app gets: `distillctl export RECIPE --bundle`."""

from __future__ import annotations

from distillctl.recipe.base import Closed


class Bundle(Closed):
    text_in: bool = False
    """A further graph that takes the text itself, its tokenizer inside (onnxruntime-extensions); for labels only.
    The same as --text-in."""
