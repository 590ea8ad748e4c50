"""Read the header of a GGUF file. Every count in it is checked against the file's size first.

The gguf package's reader visits the vocabulary value by value, which takes 3.5 s for SmolLM2 and 14 s for Gemma 3, and
transformers builds a model of whatever sizes the header names. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md,
This module reads versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distillctl.models import hash_cache
from distillctl.run_dir.workspace import digest
from distillctl.untrusted import regular_files

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_TEXT, _MAX_NAME, _MAX_DEPTH, _MAX_DIMENSIONS = 16 << 20, 256, 4, 4
_MAX_CONTEXT = 1 << 26
_SIZES = (
    "embedding_length", "feed_forward_length", "expert_feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "expert_count", "expert_used_count",
)  # fmt: skip
"""Keys of an architecture's group whose values must occur as a dimension of some tensor."""
_NEEDED = ("block_count", "embedding_length")


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry. shape: fastest dimension first, as in the file. kind: ggml's type. at, bytes: place in the
    file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    at: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """The header. keys: name → number or text; None stands for an array."""

    keys: dict[str, Any]
    tensors: list[Tensor]

    @property
    def architecture(self) -> str:
        """Return the architecture as GGUF names it."""
        return str(self.keys["general.architecture"])


def read(path: Path) -> Header:
    """Read the whole header. Raise ValueError if it is malformed, or contradicts the file's size or its tensors."""
    with regular_files.opened(path) as file:
        if file.read(4) != b"GGUF":
            raise ValueError("not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data, 4)
            keys = reader.keys()
            header = Header(keys, reader.tensors(keys))
    _check(header)
    return header


def general(path: Path) -> dict[str, str]:
    """Return key without `general.` → value, for strings. Raise ValueError if the header is malformed."""
    with regular_files.opened(path) as file:
        if file.read(4) != b"GGUF":
            raise ValueError("not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            keys = _Reader(data, 4).keys(group="general.")
    return {name.removeprefix("general."): value for name, value in keys.items() if isinstance(value, str)}


def cache_key(path: Path) -> str:
    """Return the hash of a file's content and of library versions, which names its folder from `gguf.dequantized`."""
    return digest([hash_cache.tree_digest(path), version("transformers")])[:24]


class _Reader:
    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not supported")
        self.tensor_count, self.key_count = self._number("Q"), self._number("Q")

    def keys(self, group: str = "") -> dict[str, Any]:
        """Return all keys, or those up to the first that is not in ``group``."""
        self._room(self.key_count, 13, "keys")
        values: dict[str, Any] = {}
        for _ in range(self.key_count):
            name = self._text(_MAX_NAME)
            if not name.startswith(group):
                break
            if name in values:
                raise ValueError(f"the key {name} is given twice")
            values[name] = self._value(self._number("I"), 0)
        return values

    def tensors(self, keys: dict[str, object]) -> list[Tensor]:
        """Return the tensors, which follow the keys."""
        from gguf.constants import GGML_QUANT_SIZES

        sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        self._room(self.tensor_count, 32, "tensors")
        entries = []
        for _ in range(self.tensor_count):
            name, dimensions = self._text(_MAX_NAME), self._number("I")
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise ValueError(f"the tensor {name} has {dimensions} dimensions")
            shape = tuple(self._number("Q") for _ in range(dimensions))
            kind, offset = self._number("I"), self._number("Q")
            block, block_bytes = sizes.get(kind, (0, 0))
            if not block or not all(shape) or shape[0] % block:
                raise ValueError(f"the tensor {name} has the shape {list(shape)} and the unfit type {kind}")
            entries.append(Tensor(name, shape, kind, offset, math.prod(shape) // block * block_bytes))
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise ValueError(f"an alignment of {alignment!r}")
        start = -(-self.at // alignment) * alignment
        end = start
        for tensor in sorted(entries, key=lambda tensor: tensor.at):
            if tensor.at % alignment or start + tensor.at < end:
                raise ValueError(f"the tensor {tensor.name} lies at an impossible place")
            end = start + tensor.at + tensor.bytes
            if end > len(self.data):
                raise ValueError(f"the tensor {tensor.name} ends outside the file")
        return entries

    def _value(self, kind: int, depth: int) -> Any:
        """Read a number or text; skip an array."""
        if kind == _STRING:
            return self._text(_MAX_TEXT)
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"a value of the unknown kind {kind}")
            return self._number(_SCALARS[kind])
        inner, count = self._number("I"), self._number("Q")
        if inner in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[inner]}")
            self._room(count, size, "numbers")
            self.at += count * size
        elif inner == _STRING:
            self._room(count, 8, "texts")
            for _ in range(count):
                self._skip_text()
        elif inner == _ARRAY and depth < _MAX_DEPTH:
            self._room(count, 12, "arrays")
            for _ in range(count):
                self._value(_ARRAY, depth + 1)
        else:
            raise ValueError(f"an array of the unknown kind {inner}, or of arrays too deep")
        return None

    def _skip_text(self) -> None:
        try:
            (length,) = _LENGTH.unpack_from(self.data, self.at)
        except struct.error:
            raise ValueError("the file ends within its header") from None
        self.at += 8 + length
        if self.at > len(self.data):
            raise ValueError("the file ends within a text")

    def _text(self, most: int) -> str:
        length = self._number("Q")
        if length > most or self.at + length > len(self.data):
            raise ValueError(f"a text of {length:,} bytes")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def _number(self, form: str) -> Any:
        try:
            (number,) = struct.unpack_from(f"<{form}", self.data, self.at)
        except struct.error:
            raise ValueError("the file ends within its header") from None
        self.at += struct.calcsize(f"<{form}")
        return number

    def _room(self, count: int, least: int, items: str) -> None:
        """Raise ValueError if the rest of the file is too short for ``count`` items of ``least`` bytes."""
        if count * least > len(self.data) - self.at:
            raise ValueError(f"{count:,} {items}, for which the file is too short")


_LENGTH = struct.Struct("<Q")


def _check(header: Header) -> None:
    """Raise ValueError if the header names layers without tensors, or sizes that no tensor has."""
    name = header.keys.get("general.architecture")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_.-]{1,64}", name):
        raise ValueError("it names no architecture")
    if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
        raise ValueError("a tensor is given twice")
    largest = max((size for tensor in header.tensors for size in tensor.shape), default=0)
    bounds = dict.fromkeys(_SIZES, largest) | {"block_count": len(header.tensors), "context_length": _MAX_CONTEXT}
    positions = next((max(tensor.shape) for tensor in header.tensors if tensor.name == "position_embd.weight"), None)
    if positions is not None:
        bounds["context_length"] = positions
    for key, most in bounds.items():
        value = header.keys.get(f"{name}.{key}")
        if value is None and key in _NEEDED:
            raise ValueError(f"it does not say {name}.{key}")  # transformers would use the default of a large model
        if value is not None and not (isinstance(value, int) and 0 <= value <= most):
            raise ValueError(f"{name}.{key} is {value!r}, which contradicts the tensors")
