"""Pass keys and values from step to step through ONNX Runtime's bindings, without copies."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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


def greedy(
    session: ort.InferenceSession,
    binding: ort.IOBinding,
    past: Past,
    token: int,
    steps: int,
    stop_ids: Container[int],
    before: Callable[[int], None] = lambda step: None,
) -> Iterator[int]:
    """Yield the likeliest next token at each of at most ``steps`` steps, up to and including a stop id.

    token: the first one to run. before: called with each step's number, from 0. Each step runs one token; its id and
    its logits keep their buffers.
    """
    output = next(value for value in session.get_outputs() if value.name == "logits")
    last, logits = np.zeros((1, 1), np.int64), np.zeros((1, 1, output.shape[-1]), NUMPY_TYPES[output.type])
    binding.bind_cpu_input("input_ids", last)
    binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
    for step in range(steps):
        if token in stop_ids:
            return
        last[0, 0] = token
        before(step)
        session.run_with_iobinding(binding)
        past.advance(binding)
        token = int(logits[0, 0].argmax())
        yield token


class Past(Protocol):
    """The keys and values of the tokens so far, in the layout that one graph wants."""

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind past as input and present as output. Call it before the first step and before binding other outputs."""

    def advance(self, binding: ort.IOBinding) -> None:
        """Make a step's present the next step's past."""


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

    def advance(self, binding: ort.IOBinding) -> None:
        """Do nothing: the present was written where the past is read."""


class SwappedOutputs:
    """Feed the outputs of one step into the next one, for any graph."""

    def __init__(self, inputs: Mapping[str, Cache]) -> None:
        self._empty = {name: cache.zeros(0) for name, cache in inputs.items()}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind the buffers as inputs and outputs of the next run."""
        self.take(binding, list(self._empty.values()))

    def advance(self, binding: ort.IOBinding) -> None:
        """Take the outputs of the last run as the inputs of the next one."""
        self.take(binding, binding.get_outputs())  # in the order in which they were first bound

    def take(self, binding: ort.IOBinding, past: Sequence[OrtValue]) -> None:
        """Continue from these values, in the order of the inputs. Values after them are ignored."""
        for name, value in zip(self._empty, past, strict=False):
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(present(name))
