"""Pass keys and values from run to run through ONNX Runtime's bindings. Only a wrong guess makes it copy them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort
from onnxruntime import OrtValue

NUMPY_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
"""Types of graph outputs → numpy's names for them."""


@dataclass(frozen=True)
class Cache:
    """One layer's keys, or its values: [1, heads, tokens, size]."""

    heads: int
    size: int
    dtype: str

    def zeros(self, tokens: int) -> OrtValue:
        """Return keys or values of so many tokens, all 0."""
        return OrtValue.ortvalue_from_numpy(np.zeros((1, self.heads, tokens, self.size), self.dtype))

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes that one token takes."""
        return self.heads * self.size * np.dtype(self.dtype).itemsize


def caches(session: ort.InferenceSession, head_size: int | None = None) -> dict[str, Cache]:
    """Return the graph's inputs for keys and values, in its order. head_size: for graphs that do not declare it."""
    return {
        value.name: Cache(value.shape[1], head_size or value.shape[3], NUMPY_TYPES[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }


def present(name: str) -> str:
    """Return the output that continues an input: `past_key_values.0.key` → `present.0.key`."""
    return name.replace("past_key_values.", "present.", 1)


class Past(Protocol):
    """The keys and values of the tokens so far, in the layout that one graph wants."""

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind past as input and present as output. Call it before the first step and before binding other outputs."""

    def keep(self, binding: ort.IOBinding, length: int) -> None:
        """Make the present of the last run, its first ``length`` tokens, the past of the next one."""


class SharedBuffers:
    """Past and present in the same memory, for GroupQueryAttention.

    The buffers are as long as the answer may become, and a step writes only its own positions. The graph takes the
    length in use from the attention mask.
    """

    def __init__(self, inputs: Mapping[str, Cache], length: int) -> None:
        self.length = length
        self._buffers = {name: cache.zeros(length) for name, cache in inputs.items()}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind the buffers as inputs and outputs of the next run."""
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present(name), buffer)

    def keep(self, binding: ort.IOBinding, length: int) -> None:
        """Do nothing: the present was written where the past is read, and the mask tells how much of it counts."""


class SwappedOutputs:
    """Feed the outputs of one step into the next one, for any graph."""

    def __init__(self, inputs: Mapping[str, Cache]) -> None:
        self._empty = {name: cache.zeros(0) for name, cache in inputs.items()}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind an empty past."""
        self.take(binding, list(self._empty.values()), 0)

    def keep(self, binding: ort.IOBinding, length: int) -> None:
        """Take the outputs of the last run as the inputs of the next one."""
        self.take(binding, binding.get_outputs(), length)  # in the order in which they were first bound

    def take(self, binding: ort.IOBinding, past: Sequence[OrtValue], length: int) -> None:
        """Continue from the first ``length`` tokens of these values, in the order of the inputs. More are ignored."""
        for name, value in zip(self._empty, past, strict=False):
            binding.bind_ortvalue_input(name, _beginning(value, length))
            binding.bind_output(present(name))


def _beginning(value: OrtValue, length: int) -> OrtValue:
    """Return the first ``length`` tokens of keys or values [1, heads, tokens, size]."""
    if value.shape()[2] == length:
        return value
    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[:, :, :length]))
