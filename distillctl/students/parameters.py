"""How many weights a model has, or a student cut from it will have: from its files' headers alone, without torch."""

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
"""As in `model.layers.3.mlp.up_proj.weight`, `blk.3.ffn_up.weight`."""
_ALWAYS = 256
"""Of a trimmed vocabulary: single bytes."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]

    @property
    def layer(self) -> int | None:
        """The first number in its name."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None


def count(source: ModelSource) -> int | None:
    """Weights of a whole model; None where no file is at hand."""
    found = _tensors(source)
    return sum(math.prod(tensor.shape) for tensor in found) if found else None


def of_student(recipe: Recipe, source: ModelSource | None) -> int | None:
    """Weights of the recipe's student, which starts from ``source``: of the layers it keeps, and of the tokens that are
    kept in any case (its data add some). None where no file is at hand, and for a new model, which has none."""
    spec = recipe.student
    if isinstance(spec, FromConfigStudent) or source is None or not (found := _tensors(source)):
        return None
    if isinstance(spec, TruncatedStudent):
        found = [tensor for tensor in found if tensor.layer is None or tensor.layer in spec.layers]
    whole = _vocabulary(source, found)
    if spec.vocabulary is None or whole is None:
        return sum(math.prod(tensor.shape) for tensor in found)
    kept = min(whole, spec.vocabulary.merges + _ALWAYS)
    return sum(
        math.prod(kept if size == whole and tensor.layer is None else size for size in tensor.shape) for tensor in found
    )


def _vocabulary(source: ModelSource, tensors: list[_Tensor]) -> int | None:
    """Rows of the embeddings."""
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
