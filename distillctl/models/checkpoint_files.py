"""Check the files of a model's folder before anything is loaded from them. No torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError, first_line, is_of_tokenizers
from distillctl.untrusted import limits, regular_files

_HEADER_BYTES = 100 << 20
"""Largest header of a safetensors file; the library has the same limit."""
_TEXT_BYTES = 256 << 20
"""Largest other file that libraries read whole. The largest tokenizers have about 40 MB."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "input_embedding_size")
_INNER = ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERT_INNER = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", "ffn_dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_SIZES = (*_WIDTHS, *_INNER, *_EXPERTS, *_EXPERT_INNER, *_HEADS, "vocab_size", "decoder_vocab_size", "num_labels",
          "head_dim", "num_key_value_heads")  # fmt: skip
"""Sizes that must occur as a dimension of some tensor."""
_PACKED = 8
"""Largest number of quantized weights in one stored number."""
_HARMLESS_SIZE, _HARMLESS_WEIGHTS = 1 << 16, 1 << 24
"""Sizes too small to refuse: the library that loads the model gives a better error."""
MAX_LAYERS, MAX_LABELS, MAX_POSITIONS = 10_000, 1 << 20, 1 << 26
"""Limits that no real model reaches. Libraries create or list each layer, label and position one by one."""


def shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of every tensor in the folder's safetensors files.

    Raise ValueError, KeyError or TypeError if a header is malformed.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with regular_files.opened(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_HEADER_BYTES, path.stat().st_size):
                raise ValueError(f"a header of {length:,} bytes")
            header = limits.parse_json(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(int(size) for size in entry["shape"])


def check_size(folder: Path) -> None:
    """Raise UnavailableError if loading a model's folder would take more memory than its weights explain.

    That is the case if config.json has more layers or larger sizes than the tensors, if a file is a device or a pipe or
    longer than any real one, or if weights would be read from elsewhere. Other errors are left to the loading library.
    """
    try:
        check_files(folder)
        _check_indexes(folder)
        config = limits.read_json(folder / "config.json")
        held = [shape for _, shape in shapes(folder)]
        problem = too_large(config, held)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UnavailableError(f"the model cannot be read: {first_line(error)}", where=str(folder)) from None
    if problem:
        raise UnavailableError(f"config.json {problem}", where=str(folder), next="check config.json and the weights")


def too_large(config: object, shapes_of_tensors: Sequence[tuple[int, ...]]) -> str | None:
    """Return what a configuration asks for that no real model has, or that its tensors do not show; None if nothing.

    shapes_of_tensors: without any, only sizes that no model has are reported.
    """
    for name, value in _integers(config):
        maximum = {"num_labels": MAX_LABELS}.get(name, MAX_LAYERS if name in _LAYERS else None)
        if name in _POSITIONS:
            maximum = MAX_POSITIONS
        if maximum is not None and value > maximum:
            return f"has {name}: {value:,}, which no model has"
    if not shapes_of_tensors:
        return None
    layers = max((value for name, value in _integers(config) if name in _LAYERS), default=0)
    if layers > len(shapes_of_tensors):
        return f"has {layers:,} layers, but the weights have {len(shapes_of_tensors)} tensors"
    largest = max(_HARMLESS_SIZE, _PACKED * max((size for shape in shapes_of_tensors for size in shape), default=0))
    weights = max(_HARMLESS_WEIGHTS, _PACKED * sum(map(math.prod, shapes_of_tensors)))
    for name, value in _integers(config):
        if name in _SIZES and value > largest:
            return f"has {name}: {value:,}, but no tensor has such a size"
    for part in _parts(config):
        if part.get("is_encoder_decoder") and _least(part, _POSITIONS) > largest:  # computed tables have no tensor
            return f"has {_least(part, _POSITIONS):,} positions, but no tensor has such a size"
        if (wanted := weights_of(part)) > weights:
            return f"needs at least {wanted:,} weights, but the files hold {sum(map(math.prod, shapes_of_tensors)):,}"
    return None


def too_many(wanted: int, folder: Path) -> UnavailableError | None:
    """Return the error if a model of ``wanted`` weights is larger than the folder's files explain, else None."""
    held = sum(math.prod(shape) for _, shape in shapes(folder))
    if not held or wanted <= max(_HARMLESS_WEIGHTS, _PACKED * held):
        return None
    problem = f"config.json needs {wanted:,} weights, but the files hold {held:,}"
    return UnavailableError(problem, where=str(folder), next="check config.json and the weights")


_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions")


def weights_of(part: Mapping[str, Any]) -> int:
    """Return a lower bound of a configuration's weights: the embeddings, and each layer's largest matrix."""
    width = _least(part, _WIDTHS)
    layers = max((value for name, value in part.items() if name in _LAYERS and _is_size(value)), default=1)
    vocabulary, inner, experts = _least(part, ("vocab_size",)), _least(part, _INNER), _least(part, _EXPERTS)
    of_experts = experts * _least(part, _EXPERT_INNER)
    of_heads = _least(part, _HEADS) * _least(part, ("head_dim",))
    return width * (vocabulary + layers * max(inner, of_experts, of_heads))


def _least(part: Mapping[str, Any], names: Sequence[str]) -> int:
    return min((part[name] for name in names if _is_size(part.get(name))), default=0)


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _parts(config: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the configuration and its parts, such as `text_config`."""
    if isinstance(config, dict) and depth < 5:
        yield config
        for value in config.values():
            yield from _parts(value, depth + 1)


def _integers(config: object) -> Iterator[tuple[str, int]]:
    return ((name, value) for part in _parts(config) for name, value in part.items() if _is_size(value))


def check_files(folder: Path) -> None:
    """Raise ValueError or OSError if a file that libraries read whole is not regular or too long."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_dir():
            continue
        regular_files.check_regular(path)
        if path.suffix in _READ_WHOLE and path.exists() and (size := path.stat().st_size) > _TEXT_BYTES:
            raise ValueError(f"{path.name} has {size:,} bytes, more than any such file")


_READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".md", ".yaml", ".jsonl", ".py")


def _check_indexes(folder: Path) -> None:
    """Raise ValueError if an index of weights names a file outside the folder, which transformers would open."""
    for path in folder.glob("*.safetensors.index.json"):
        for name in limits.read_json(path, _HEADER_BYTES)["weight_map"].values():
            if name != Path(name).name:
                raise ValueError(f"{path.name} names {name!r}, which is not a file in its folder")


@contextmanager
def loading(unavailable: Callable[[BaseException], UnavailableError]) -> Iterator[None]:
    """Turn the errors that transformers and its libraries raise over a model's files into ``unavailable``'s error."""
    try:
        yield
    except BaseException as error:
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        if not (isinstance(error, (*_RAISED, SafetensorError, StrictDataclassError)) or is_of_tokenizers(error)):
            raise
        raise unavailable(error) from error


_RAISED = (
    OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError,
)  # fmt: skip
