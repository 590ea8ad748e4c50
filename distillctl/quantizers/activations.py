"""Measure what reaches the matrices of a graph when it runs on train rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distillctl import interrupts
from distillctl.runtimes.onnxruntime import session

_AT_ONCE = 512
"""Rows of inputs that are multiplied at once. Each product adds K · K numbers to the sum, so few products are quick."""


def second_moments(
    path: Path, inputs: Mapping[str, Sequence[str]], feeds: Iterable[Mapping[str, np.ndarray]], threads: int = 1
) -> dict[str, np.ndarray]:
    """Return for each matrix the mean of x·xᵀ over the inputs x of its products, float32 [K, K].

    inputs: matrix → the graph's values [..., K] that it multiplies; feeds: the graph's inputs, one run each. All
    moments are in memory together: 0.4 GB for Gemma 3 270M.
    """
    sums = {name: _Sum() for names in inputs.values() for name in names}
    model = ir.load(path)
    inside = {value.name: value for node in model.graph for value in node.outputs if value.name in sums}
    computed = sorted(map(str, inside))  # a decoder multiplies its inputs, too
    model.graph.outputs.extend(inside[name] for name in computed if inside[name] not in model.graph.outputs)
    with tempfile.TemporaryDirectory() as scratch:
        ir.save(model, Path(scratch) / path.name, external_data=f"{path.name}.data")
        graph = session(Path(scratch) / path.name, threads)
        for feed in feeds:
            interrupts.raise_if_pending()
            values = {**feed, **dict(zip(computed, graph.run(computed, dict(feed)), strict=True))}
            for name, total in sums.items():
                total.add(values[name].reshape(-1, values[name].shape[-1]))
    return {
        matrix: np.sum([sums[name].flushed() for name in names], 0) / sum(sums[name].count for name in names)
        for matrix, names in inputs.items()
    }


class _Sum:
    """The sum of x·xᵀ over inputs x, and their number."""

    def __init__(self) -> None:
        self.count, self._sum = 0, np.float32(0)
        self._waiting: list[np.ndarray] = []

    def add(self, inputs: np.ndarray) -> None:
        """Add inputs, [T, K]."""
        self.count += len(inputs)
        self._waiting.append(inputs.astype(np.float32, copy=False))
        if sum(map(len, self._waiting)) >= _AT_ONCE:
            self.flushed()

    def flushed(self) -> np.ndarray:
        """Return the sum of all inputs so far, [K, K]."""
        if self._waiting:
            inputs = np.concatenate(self._waiting)
            self._sum = self._sum + inputs.T @ inputs
            self._waiting.clear()
        return np.asarray(self._sum)
