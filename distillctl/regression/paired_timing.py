"""Compare the latency of two graphs by pairs of fresh processes, until the difference is decided.

A pair is one process of each graph, both on the same CPUs. Both answer the same rows in small blocks, in the order
ABBA, then BAAB, so that other load on the machine affects both; each answers every row twice. The pair's difference is
the median over its rows of log(time of one / time of the other). It counts as one sample: queries of one process share
the layout of its memory and are not independent. `distillctl.regression.sequential_test` decides how many pairs are
enough.

The heap uses huge pages if the system allows it. The placement of small pages differs in each process: on the demo's
int8 graph, pairs of equal processes differed by 5.6 % (standard deviation) with small pages and by 1.2 % with huge
ones.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distillctl import interrupts
from distillctl.regression import sequential_test
from distillctl.regression.sequential_test import LOOKS, Centre
from distillctl.runtimes import machine
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import MODULE, WorkerProcess

BLOCK, ROUNDS = 5, 10
"""For fast models: rows of a block, and ABBA rounds in a pair."""
PAIR_SECONDS = 1.0
"""About the longest time of a pair's timed queries, which still answer at least `LEAST_ROWS`."""
LEAST_ROWS = 3
WARM_QUERIES, WARM_SECONDS = 12, 0.5
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class BenchTarget:
    """One of the two graphs: the worker's job, and the worker's module."""

    job: Job
    module: str = MODULE


@dataclass
class PairedTiming:
    """The measurements of all pairs. Times are in milliseconds per query."""

    bound: float
    """Log of the largest ratio that passes."""
    differences: list[float] = field(default_factory=list)
    """log(own / other) of each pair."""
    own_ms: list[float] = field(default_factory=list)
    """Median of each pair."""
    other_ms: list[float] = field(default_factory=list)
    queries: int = 0
    """Number of queries to each graph."""
    seconds: float = 0.0

    @property
    def centre(self) -> Centre:
        """Return the estimate of the log ratio, with its interval."""
        return sequential_test.centre(self.differences)

    @property
    def verdict(self) -> str:
        """Return "slower" (than the bound), "fine" or "undecided"."""
        centre = self.centre
        return "slower" if centre.low > self.bound else "fine" if centre.high < self.bound else "undecided"

    def facts(self) -> dict[str, Any]:
        """Return the facts. ratio: own time over the other's, with its interval, whose ends are None before the first
        look."""
        centre, undecided = self.centre, self.verdict == "undecided"
        return {
            "verdict": self.verdict,
            "ratio": math.exp(centre.value),
            "low": _ratio(centre.low),
            "high": _ratio(centre.high),
            "max_ratio": math.exp(self.bound),
            "own_p50_ms": statistics.median(self.own_ms),
            "other_p50_ms": statistics.median(self.other_ms),
            "pairs": len(self.differences),
            "queries": self.queries,
            "seconds": self.seconds,
            "pair_spread": statistics.stdev(self.differences) if len(self.differences) > 1 else None,
            "more_pairs": sequential_test.pairs_wanted(self.differences, self.bound) if undecided else None,
        }


def _ratio(log: float) -> float | None:
    return math.exp(log) if math.isfinite(log) else None


def compare_latency(
    target: BenchTarget,
    other: BenchTarget,
    *,
    max_ratio: float,
    max_seconds: float = math.inf,
    advance: Callable[[], None] = lambda: None,
) -> PairedTiming:
    """Run pairs until an interim look decides, the last look is done, or ``max_seconds`` leave no time for another
    pair.

    The texts of both jobs are the same rows; every pair takes the next ones. Raise UnavailableError if a model cannot
    run.
    """
    timing, began, longest = PairedTiming(math.log(max_ratio)), time.perf_counter(), 0.0
    for pair in range(max(LOOKS)):
        interrupts.raise_if_pending()
        started = time.perf_counter()
        if timing.differences and started - began + longest > max_seconds:
            break
        _run_pair(timing, target, other, pair)
        advance()
        timing.seconds = time.perf_counter() - began
        longest = max(longest, time.perf_counter() - started)
        if len(timing.differences) in LOOKS and timing.verdict != "undecided":
            break
    return timing


def _run_pair(timing: PairedTiming, target: BenchTarget, other: BenchTarget, pair: int) -> None:
    sides = {"own": target, "other": other}
    names = list(sides)[:: -1 if pair % 2 else 1]
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                WorkerProcess(name, sides[name].job, module=sides[name].module, env=HUGE_PAGES, wait=False)
            )
            for name in names
        }
        for worker in workers.values():
            worker.load()
        cpus = machine.cpus(target.job["threads"], 0.05)
        for worker in workers.values():
            worker.pin(cpus)
        rows = len(target.job["texts"])
        query_ms = max(_warm(workers[name], rows) for name in names)
        block, rounds = _shape(query_ms, rows)
        times: dict[str, list[np.ndarray]] = {name: [] for name in names}
        start = pair * block * rounds % (rows - block + 1)
        for turn in range(rounds):
            blocks: dict[str, list[np.ndarray]] = {name: [] for name in names}
            first, second = names[:: -1 if turn % 2 else 1]
            for name in (first, second, second, first):
                answer = workers[name].run(start, block)
                blocks[name].append(np.array([sum(token_ms) for token_ms in answer["token_ms"]]))
            for name in names:
                times[name].append(np.stack(blocks[name]))
            start = (start + block) % (rows - block + 1)
    ours, theirs = (np.concatenate(times[name], axis=1) for name in ("own", "other"))
    timing.differences.append(float(np.median(np.log(ours) - np.log(theirs))))
    timing.own_ms.append(float(np.median(ours)))
    timing.other_ms.append(float(np.median(theirs)))
    timing.queries += ours.size


def _warm(worker: WorkerProcess, rows: int) -> float:
    """Return the median milliseconds of a query, after the first one."""
    worker.run(0, 1)
    answer = worker.run(0, min(WARM_QUERIES, rows), WARM_SECONDS)
    return statistics.median(map(sum, answer["token_ms"]))


def _shape(query_ms: float, rows: int) -> tuple[int, int]:
    """Return the rows of a block, and the rounds of four blocks."""
    fit = max(LEAST_ROWS, min(BLOCK * ROUNDS, int(1e3 * PAIR_SECONDS / (4 * query_ms)), rows))
    block = min(BLOCK, max(1, fit // 2), rows)
    return block, max(1, fit // block)
