"""What the files of a model's folder say before anything is made of them, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillctl import limits, regular_files
from distillctl.errors import Unavailable, first_line, is_of_tokenizers

_HEADER_BYTES, _CONFIG_BYTES = 100 << 20, 4 << 20
"""The first is the safetensors library's own bound."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip


def shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor in the folder's safetensors files. ValueError, or what comes of wrong kinds, where
    a header is none."""
    for path in sorted(folder.glob("*.safetensors")):
        with regular_files.opened(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_HEADER_BYTES, path.stat().st_size):
                raise ValueError(f"a header of {length:,} bytes")
            header = _json(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(int(size) for size in entry["shape"])


def check(folder: Path) -> None:
    """Unavailable where config.json names more layers than there are tensors (they would all be made, and only then
    found to have no weights), and where weights would be read from elsewhere. What else is wrong the library says that
    loads it."""
    try:
        _check_indexes(folder)
        config = _json(limits.read_bytes(folder / "config.json", _CONFIG_BYTES))
        layers = max(_layers(config), default=0)
        tensors = sum(1 for _ in shapes(folder))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Unavailable(f"the model cannot be read: {first_line(error)}", where=str(folder)) from None
    if tensors and layers > tensors:
        raise Unavailable(f"config.json names {layers:,} layers, the weights have {tensors} tensors", where=str(folder))


def _check_indexes(folder: Path) -> None:
    """ValueError where an index of weights names what is no file of the folder: transformers would open it."""
    for path in folder.glob("*.safetensors.index.json"):
        for name in _json(limits.read_bytes(path, _HEADER_BYTES))["weight_map"].values():
            if name != Path(name).name:
                raise ValueError(f"{path.name} names {name!r}, which is no file beside it")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


@contextmanager
def loading(unavailable: Callable[[BaseException], Unavailable]) -> Iterator[None]:
    """What transformers and the libraries under it raise over the files of a model, as ``unavailable`` tells it."""
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


def _layers(config: Any, depth: int = 0) -> Iterator[int]:
    """Of the model and of its parts (`text_config`)."""
    if isinstance(config, dict) and depth < 5:
        for key, value in config.items():
            if key in _LAYERS and isinstance(value, int):
                yield value
            yield from _layers(value, depth + 1)
