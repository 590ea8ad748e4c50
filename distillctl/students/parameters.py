"""Count the weights of a model, or of a student cut from it, from its files' headers, without torch."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

from distillctl.errors import UnavailableError, first_line
from distillctl.models import checkpoint_files, gguf_header
from distillctl.models.model_source import ModelSource
from distillctl.recipe import FromConfigStudent, Recipe, TruncatedStudent
from distillctl.untrusted import limits

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""Matches `model.layers.3.mlp.up_proj.weight`, `blk.3.ffn_up.weight`."""
_ALWAYS = 256
"""Number of single bytes, which a trimmed vocabulary always keeps."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]

    @property
    def layer(self) -> int | None:
        """Return the first number in its name."""
        match = _LAYER.search(self.name)
        return int(match[1]) if match else None


def count(source: ModelSource) -> int | None:
    """Return the weights of a whole model, or None without local files."""
    tensors = _tensors(source)
    return sum(math.prod(tensor.shape) for tensor in tensors) if tensors else None


def of_student(recipe: Recipe, source: ModelSource | None) -> int | None:
    """Return the weights of the recipe's student, which starts from ``source``; None without local files, or for a new
    model.

    They include the layers it keeps, and the tokens that are always kept; its data add some.
    """
    spec = recipe.student
    if isinstance(spec, FromConfigStudent) or source is None or not (tensors := _tensors(source)):
        return None
    if isinstance(spec, TruncatedStudent):
        tensors = [tensor for tensor in tensors if tensor.layer is None or tensor.layer in spec.layers]
    whole = _vocabulary(source, tensors)
    if spec.vocabulary is None or whole is None:
        return sum(math.prod(tensor.shape) for tensor in tensors)
    kept = min(whole, spec.vocabulary.merges + _ALWAYS)
    return sum(
        math.prod(kept if size == whole and tensor.layer is None else size for size in tensor.shape)
        for tensor in tensors
    )


def _vocabulary(source: ModelSource, tensors: list[_Tensor]) -> int | None:
    """Return the number of rows of the embeddings."""
    if source.is_gguf:
        return next((max(tensor.shape) for tensor in tensors if tensor.name == "token_embd.weight"), None)
    try:
        assert source.path is not None
        config = limits.read_json(source.path / "config.json")
        return int(config["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tensors(source: ModelSource) -> list[_Tensor]:
    if source.path is None:
        return []
    try:
        if source.is_gguf:
            return [_Tensor(tensor.name, tensor.shape) for tensor in gguf_header.read(source.path).tensors]
        return [_Tensor(*entry) for entry in checkpoint_files.shapes(source.path)]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise UnavailableError(f"the weights cannot be read: {first_line(error)}", where=str(source.path)) from error
