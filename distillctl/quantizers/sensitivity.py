"""Find the matrices that a graph needs most by rounding each one alone.

A trial changes one constant in a copy of the fp32 graph and runs the same rows again. Its cost is KL(fp32 ‖ trial),
mean nats per answer, on rows of the train split, because the held-out ones judge the candidate afterwards. Costs are
assumed to add up, so bits go greedily where they save most per byte (Dong et al. 2020, "HAWQ-V2", section 3.2, with the
divergence itself instead of its second-order estimate).
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distillctl import console, interrupts
from distillctl.metrics import scores
from distillctl.quantizers.activations import second_moments
from distillctl.quantizers.blocks import Blocks


@dataclass(frozen=True)
class Cost:
    """The cost of rounding a matrix. kl: nats per answer. weights: number of its weights."""

    kl: float
    weights: int


class Calibration(ABC):
    """Some train rows, the fp32 graph's answers to them, and what all candidates need alike.

    threads: with which the graphs run here, where nothing is timed. rounded: matrices in blocks that candidates have in
    common.
    """

    def __init__(self, source: Path, threads: int = 1) -> None:
        self.source, self.threads = source, threads
        self.rounded: dict[Hashable, Blocks] = {}
        self._known: dict[str, Mapping[str, Cost]] = {}
        self._fp32: np.ndarray | None = None
        self._moments: dict[str, Mapping[str, np.ndarray]] = {}

    @abstractmethod
    def log_probs(self, folder: Path) -> np.ndarray:
        """Return the normalised answers of the graph in ``folder``, float32 [N, K]."""

    @abstractmethod
    def feeds(self, path: Path) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield each row's inputs of the exported graph ``path``, by name."""

    def moments(self, path: Path, inputs: Mapping[str, Sequence[str]]) -> Mapping[str, np.ndarray]:
        """Return `second_moments` of the exported graph ``path`` on these rows; they are measured once."""
        if path.name not in self._moments:
            self._moments[path.name] = second_moments(path, inputs, self.feeds(path), self.threads)
        return self._moments[path.name]

    def costs(self, key: str, path: Path, trials: Mapping[str, Callable[[], np.ndarray]]) -> Mapping[str, Cost]:
        """Return for each constant the cost of replacing it by its trial's array, of the same shape.

        key: names the trials; their costs are measured once. path: the graph, in ``source``.
        """
        if key not in self._known:
            self._known[key] = self._measured(path, trials)
        return self._known[key]

    def _measured(self, path: Path, trials: Mapping[str, Callable[[], np.ndarray]]) -> Mapping[str, Cost]:
        if self._fp32 is None:
            self._fp32 = self.log_probs(self.source)
        costs = {}
        with tempfile.TemporaryDirectory() as scratch, console.progress("sensitivity", len(trials), "weights") as bar:
            weights = _Weights(self.source, path, Path(scratch))
            for name in sorted(trials):
                interrupts.raise_if_pending()
                array = trials[name]()
                with weights.replaced(name, array):
                    answers = self.log_probs(Path(scratch))
                costs[name] = Cost(scores.kl(self._fp32, answers), array.size)
                bar.advance()
        return costs


def costliest(costs: Mapping[str, Cost], share: float) -> set[str]:
    """Return the matrices that cost most per weight, up to ``share`` of all weights, at least one."""
    order = sorted(costs, key=lambda name: (-costs[name].kl / costs[name].weights, name))
    room = share * sum(cost.weights for cost in costs.values())
    kept: set[str] = set()
    for name in order:
        if not kept or costs[name].weights <= room:
            kept.add(name)
            room -= costs[name].weights
    return kept


class _Weights:
    """A copy of a folder whose graph has its weights in a file of their own, where they can be changed in place."""

    def __init__(self, source: Path, path: Path, folder: Path) -> None:
        for other in source.iterdir():
            if not other.name.startswith(path.name) and not other.is_symlink():
                shutil.copyfile(other, folder / other.name)
        ir.save(ir.load(path), folder / path.name, external_data=f"{path.name}.data")
        written = ir.load(folder / path.name).graph.initializers
        tensors = {name: value.const_value for name, value in written.items()}
        self._where = {
            name: (folder / tensor.location, tensor.offset or 0)
            for name, tensor in tensors.items()
            if isinstance(tensor, ir.ExternalTensor)
        }

    @contextmanager
    def replaced(self, name: str, array: np.ndarray) -> Iterator[None]:
        """Replace an array by another of the same shape within the block."""
        path, offset = self._where[name]
        before = _exchanged(path, offset, np.ascontiguousarray(array, np.float32).tobytes())
        try:
            yield
        finally:
            _exchanged(path, offset, before)


def _exchanged(path: Path, offset: int, data: bytes) -> bytes:
    """Overwrite part of a file, and return its former bytes."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return before
