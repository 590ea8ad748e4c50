"""Which matrices a graph can least do without: each is rounded alone, and what that costs is measured.

A trial changes one constant in a copy of the fp32 graph and asks it the same rows again. The cost is KL(fp32 ‖ trial),
mean nats per answer, on rows of the train split: the held-out ones judge the candidate afterwards. Costs are taken to
add up, so the bits go where they save most of it per byte: greedy, as for the knapsack it is (Dong et al. 2020,
"HAWQ-V2", section 3.2, with the divergence itself in place of its second-order estimate).
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from distillctl import console


@dataclass(frozen=True)
class Cost:
    """kl: nats per answer; weights: how many the matrix has."""

    kl: float
    weights: int


class Calibration(ABC):
    """Some rows of the train split, and what the fp32 graph says to them."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._known: dict[str, Mapping[str, Cost]] = {}
        self._fp32: np.ndarray | None = None

    @abstractmethod
    def log_probs(self, folder: Path) -> np.ndarray:
        """What the graph in ``folder`` says to the rows: normalised, float32 [N, K]."""

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """The graph's inputs for each row, by name; only where a graph answers a row in one run."""
        raise NotImplementedError

    def costs(self, what: str, path: Path, trials: Mapping[str, Callable[[], np.ndarray]]) -> Mapping[str, Cost]:
        """Constant → what it costs in place of it to have the array that its trial returns, of the same shape.

        what: names the trials; those measured before are not measured again. path: the graph, in ``source``.
        """
        if what not in self._known:
            self._known[what] = self._measured(path, trials)
        return self._known[what]

    def _measured(self, path: Path, trials: Mapping[str, Callable[[], np.ndarray]]) -> Mapping[str, Cost]:
        if self._fp32 is None:
            self._fp32 = self.log_probs(self.source)
        found = {}
        with tempfile.TemporaryDirectory() as scratch, console.progress("sensitivity", len(trials)) as bar:
            weights = _Weights(self.source, path, Path(scratch))
            for name in sorted(trials):
                array = trials[name]()
                with weights.replaced(name, array):
                    own = self.log_probs(Path(scratch))
                divergence = (np.exp(self._fp32) * (self._fp32 - own)).sum(-1).mean()
                found[name] = Cost(float(divergence), array.size)
                bar.advance()
        return found


def costliest(costs: Mapping[str, Cost], share: float) -> set[str]:
    """Of those that cost most per weight, as many as make up ``share`` of all weights, one at least."""
    order = sorted(costs, key=lambda name: (-costs[name].kl / costs[name].weights, name))
    room = share * sum(cost.weights for cost in costs.values())
    kept: set[str] = set()
    for name in order:
        if not kept or costs[name].weights <= room:
            kept.add(name)
            room -= costs[name].weights
    return kept


@dataclass
class _Weights:
    """A copy of a folder whose graph has its weights in a file of their own, where one can be changed in place."""

    source: Path
    path: Path
    folder: Path
    _where: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.source.iterdir():
            if not path.name.startswith(self.path.name):
                shutil.copyfile(path, self.folder / path.name)
        ir.save(ir.load(self.path), self.folder / self.path.name, external_data=f"{self.path.name}.data")
        for name, value in ir.load(self.folder / self.path.name).graph.initializers.items():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                self._where[name] = self.folder / tensor.location, tensor.offset or 0

    def replaced(self, name: str, array: np.ndarray) -> _Replaced:
        path, offset = self._where[name]
        return _Replaced(path, offset, np.ascontiguousarray(array, np.float32).tobytes())


@dataclass
class _Replaced:
    """Bytes of a file, for as long as it lasts."""

    path: Path
    offset: int
    data: bytes

    def __enter__(self) -> None:
        self.data = self._exchanged()

    def __exit__(self, *problem: object) -> None:
        self._exchanged()

    def _exchanged(self) -> bytes:
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            before = file.read(len(self.data))
            file.seek(self.offset)
            file.write(self.data)
        return before
