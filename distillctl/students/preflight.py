"""Check a recipe's student by its files alone, before torch is imported and before collect is paid for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl.data.truncation import Limit
from distillctl.errors import RecipeError
from distillctl.models import checkpoint_files, gguf_header, model_source
from distillctl.recipe import FromConfigStudent, Recipe, TruncatedStudent
from distillctl.untrusted import limits

_WEIGHT_BYTES = 4
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_student(recipe: Recipe) -> None:
    """Raise RecipeError if the model lacks the layers, or if a decoder's response leaves no room for a view."""
    spec, source = recipe.student, model_source.student(recipe)
    if isinstance(spec, FromConfigStudent):
        check_sizes(spec)
    layers = spec.layers if isinstance(spec, TruncatedStudent) else ()
    response = recipe.task.response_tokens
    tight = spec.max_length is not None and spec.max_length <= response
    shape = _shape(source.path) if (layers or tight) and source and source.path else None
    if shape and shape.layers and max(layers, default=0) >= shape.layers:
        raise missing_layers(layers, shape.layers)
    if shape and shape.is_decoder and tight and spec.max_length is not None:
        raise no_room(spec.max_length, response)


def check_sizes(spec: FromConfigStudent) -> None:
    """Raise RecipeError for a new model that does not fit into this machine's memory."""
    if problem := checkpoint_files.too_large(spec.config, ()):
        raise RecipeError(f"it {problem}", where="student.config")
    check_memory(checkpoint_files.weights_of(spec.config))


def check_memory(weights: int) -> None:
    """Raise RecipeError if so many weights in float32 exceed the machine's memory."""
    available = limits.machine_bytes()
    if _WEIGHT_BYTES * weights > available:
        raise RecipeError(
            f"its weights alone take {_WEIGHT_BYTES * weights / 1e9:,.1f} GB, and this machine has "
            f"{available / 1e9:,.1f} GB",
            where="student.config",
            next="make the student smaller: fewer layers, a smaller hidden size, or a smaller vocabulary",
        )


def missing_layers(layers: tuple[int, ...], depth: int) -> RecipeError:
    """Return the error for layers that the model does not have."""
    return RecipeError(
        f"the model has layers 0 to {depth - 1}, and the recipe asks for {list(layers)}", where="student.layers"
    )


def no_room(longest: int, response: int) -> RecipeError:
    """Return the error for a decoder whose response leaves no room for a view."""
    return RecipeError(
        f"a view and a response of up to {response} tokens do not fit into the student's {longest}",
        where="student.max_length",
        next="lower task.max_new_tokens, or raise student.max_length if the model allows it",
    )


def view_limit(max_length: int, response_length: int) -> Limit:
    """Return the maximal number of tokens of a student's simplified views."""
    room = f" and keeps {response_length:,} of them for the response" if response_length else ""
    return Limit(
        "the student",
        max_length - response_length,
        f"the student takes {max_length:,}{room}",
        "shorten the view, raise student.max_length if the model allows it, or set contexts.truncate: input",
    )


def longest_view(config: Any, tokenizer: Any, max_length: int | None, response_length: int = 0) -> int:
    """Return the number of tokens that a student takes, response included, by its model, tokenizer and recipe.

    Raises RecipeError if the response leaves no room for a view.
    """
    allowed = getattr(config, "max_position_embeddings", None) or 2**31
    longest = min(allowed, tokenizer.model_max_length)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        longest = min(longest, allowed - tokenizer.pad_token_id - 1)  # their positions start after the padding id
    longest = min(max_length or longest, longest)
    if longest <= response_length:
        raise no_room(longest, response_length)
    return int(longest)


@dataclass(frozen=True)
class _Shape:
    layers: int | None
    is_decoder: bool


def _shape(path: Path) -> _Shape | None:
    """Return a local model's layers and kind, or None if they are unknown; loading it will then raise the error."""
    try:
        if path.is_file():
            return _Shape(_gguf_layers(path), is_decoder=True)
        config = limits.read_json(path / "config.json")
        layers = next((int(config[key]) for key in _DEPTHS if config.get(key)), None)
        return _Shape(layers, is_decoder=not config.get("is_encoder_decoder"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _gguf_layers(path: Path) -> int | None:
    header = gguf_header.read(path)
    count: int | None = header.keys.get(f"{header.architecture}.block_count")
    return count
