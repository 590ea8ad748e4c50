"""Is one graph slower than another? Pairs of fresh processes, in turns, until it is decided.

A pair is one process of each graph, both on the same CPUs. Both answer the same rows in blocks of a few, in the order
ABBA, then BAAB, so that what the machine does meanwhile happens to both; every row is answered twice by each. The
pair's difference is the median over its rows of the logarithm of one time over the other, and is one sample: queries of
one process share what its memory happens to look like, and are no samples of each other. What is concluded from how
many pairs: `distillctl.regression.sequential_test`.

The heap lies in huge pages where the system allows it. How the small ones fall is drawn anew in each process, and on
the demo's int8 graph made pairs of equal processes differ by 5.6 % (standard deviation) where huge ones leave 1.2 %.
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
"""Rows of a turn, and turns of ABBA in a pair, of models that are fast."""
PAIR_SECONDS = 1.0
"""A pair's timed queries take about so long at most, but answer `LEAST_ROWS`."""
LEAST_ROWS = 3
WARM_QUERIES, WARM_SECONDS = 12, 0.5
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class BenchTarget:
    """One of the two: what its worker runs, and which module that is."""

    job: Job
    module: str = MODULE


@dataclass
class PairedTiming:
    """What the pairs of processes said. Times in milliseconds per query."""

    bound: float
    """log of the largest ratio that passes."""
    differences: list[float] = field(default_factory=list)
    """log(own / other), one per pair."""
    own_ms: list[float] = field(default_factory=list)
    """The pairs' medians."""
    other_ms: list[float] = field(default_factory=list)
    queries: int = 0
    """Of each side."""
    seconds: float = 0.0

    @property
    def centre(self) -> Centre:
        return sequential_test.centre(self.differences)

    @property
    def verdict(self) -> str:
        """ "slower" than the bound, "fine", or "undecided"."""
        found = self.centre
        return "slower" if found.low > self.bound else "fine" if found.high < self.bound else "undecided"

    def facts(self) -> dict[str, Any]:
        """ratio: own time over the other's, with its interval; None where there is no interval yet."""
        found, undecided = self.centre, self.verdict == "undecided"
        return {
            "verdict": self.verdict,
            "ratio": math.exp(found.value),
            "low": _ratio(found.low),
            "high": _ratio(found.high),
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
    own: BenchTarget,
    other: BenchTarget,
    *,
    max_ratio: float,
    max_seconds: float = math.inf,
    advance: Callable[[], None] = lambda: None,
) -> PairedTiming:
    """Run pairs until a look decides, the last look is done, or ``max_seconds`` would not hold another pair.

    The texts of both jobs are the same rows, from which every pair takes the next ones. UnavailableError when a model
    cannot be run.
    """
    duel, began, longest = PairedTiming(math.log(max_ratio)), time.perf_counter(), 0.0
    for pair in range(max(LOOKS)):
        interrupts.raise_if_pending()
        started = time.perf_counter()
        if duel.differences and started - began + longest > max_seconds:
            break
        _run_pair(duel, own, other, pair)
        advance()
        duel.seconds = time.perf_counter() - began
        longest = max(longest, time.perf_counter() - started)
        if len(duel.differences) in LOOKS and duel.verdict != "undecided":
            break
    return duel


def _run_pair(duel: PairedTiming, own: BenchTarget, other: BenchTarget, pair: int) -> None:
    sides = {"own": own, "other": other}
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
        cpus = machine.cpus(own.job["threads"], 0.05)
        for worker in workers.values():
            worker.pin(cpus)
        rows = len(own.job["texts"])
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
    duel.differences.append(float(np.median(np.log(ours) - np.log(theirs))))
    duel.own_ms.append(float(np.median(ours)))
    duel.other_ms.append(float(np.median(theirs)))
    duel.queries += ours.size


def _warm(worker: WorkerProcess, rows: int) -> float:
    """Median milliseconds of a query, after the first one."""
    worker.run(0, 1)
    answer = worker.run(0, min(WARM_QUERIES, rows), WARM_SECONDS)
    return statistics.median(map(sum, answer["token_ms"]))


def _shape(query_ms: float, rows: int) -> tuple[int, int]:
    """Rows of a block, and rounds of four blocks."""
    fit = max(LEAST_ROWS, min(BLOCK * ROUNDS, int(1e3 * PAIR_SECONDS / (4 * query_ms)), rows))
    block = min(BLOCK, max(1, fit // 2), rows)
    return block, max(1, fit // block)
