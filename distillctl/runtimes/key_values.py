"""Keys and values from step to step, bound to ONNX Runtime so that none of them is copied."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort
from onnxruntime import OrtValue

NUMPY_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
"""What graphs put out, as numpy calls it."""


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
    """The graph's inputs for keys and values, in its order. head_size: for graphs that do not say it themselves."""
    return {
        value.name: Cache(value.shape[1], head_size or value.shape[3], NUMPY_TYPES[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }


def present(name: str) -> str:
    """The output that takes an input of keys or values further: `past_key_values.0.key` → `present.0.key`."""
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
    """What follows ``token``, the likeliest at each of at most ``steps`` steps, up to and with a stop id. ``before`` is
    told each step's number, from 0. A step runs one token: its id and its logits stay in the same places."""
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
    """The keys and values of the tokens so far, as one graph wants them."""

    def bind(self, binding: ort.IOBinding) -> None:
        """Before the first step and before any other output is bound: past as input, present as output."""

    def advance(self, binding: ort.IOBinding) -> None:
        """After a step: its present is the next one's past."""


class SharedBuffers:
    """For GroupQueryAttention: past and present are the same memory, as long as the answer may become, so that a step
    writes its own positions and nothing else. The graph takes the length in use from the attention mask."""

    def __init__(self, inputs: Mapping[str, Cache], length: int) -> None:
        self.length = length
        self._buffers = {name: cache.zeros(length) for name, cache in inputs.items()}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind the buffers as inputs and outputs of the next run."""
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present(name), buffer)

    def advance(self, binding: ort.IOBinding) -> None:
        """Nothing is left to do: present was written where past is read."""


class SwappedOutputs:
    """For any graph: what one step put out goes into the next one."""

    def __init__(self, inputs: Mapping[str, Cache]) -> None:
        self._empty = {name: cache.zeros(0) for name, cache in inputs.items()}

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind the buffers as inputs and outputs of the next run."""
        self.take(binding, list(self._empty.values()))

    def advance(self, binding: ort.IOBinding) -> None:
        """Take the outputs of the last run as the inputs of the next one."""
        self.take(binding, binding.get_outputs())  # in the order in which they were first bound

    def take(self, binding: ort.IOBinding, past: Sequence[OrtValue]) -> None:
        """Go on from these, in the order of the inputs; what follows them is left alone."""
        for name, value in zip(self._empty, past, strict=False):
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(present(name))
