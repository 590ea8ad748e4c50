"""Time models against each other: one query at a time, in fresh processes that take turns.

A round starts one fresh process per model, each loading while the others wait. All are warmed up, then take turns in
small blocks of queries, so that a machine that grows slower or faster does so for all of them. The rounds' rows differ;
within a round all models answer the same rows in the same order. All models are in memory at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distillctl import interrupts
from distillctl.runtimes.process import WorkerProcess

Job = dict[str, Any]
"""The model and texts for a `worker`, as JSON."""

BLOCK = 5
"""Queries per turn: few, so that drift affects all models; more than one, so that caches are warm."""
WARM_SECONDS = 1.0
"""Seconds of queries after which a model is warm: its caches and allocators are filled."""
MEMORY = ("peak_rss_bytes", "anonymous_bytes", "mapped_bytes")
"""Keys of the worker's answers."""
LEAST = 2
"""Minimum of timed queries per process, even if no time is left."""


@dataclass(frozen=True)
class Plan:
    """Number and time of the queries.

    queries: timed ones per process. warmup: untimed ones after the first. seconds: for timed queries, per process.
    fewer: model → the number of processes, for models that take part in the first rounds only.
    """

    processes: int
    queries: int
    warmup: int
    seconds: float | None
    fewer: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Return how many texts a job needs: the queries of all rounds, then those of the warm-up."""
        return self.processes * self.queries + 1 + self.warmup

    @property
    def turns(self) -> int:
        """Return how many blocks of queries a process answers."""
        return math.ceil(self.queries / BLOCK)

    def rounds(self, name: str) -> int:
        """Return the number of processes of a model."""
        return min(self.processes, self.fewer.get(name, self.processes))


@dataclass
class ProcessRun:
    """One process of one model. Times are in milliseconds. loaded: the worker's first answer."""

    process: int
    loaded: dict[str, Any]
    first_ms: float
    warmup_ms: list[float]
    queries: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    """Token ids of each answer, or one label index."""
    token_ms: list[list[float]] = field(default_factory=list)
    """Milliseconds of each token; the first one counts from the arrival of its text."""
    peak_rss_bytes: int = 0
    anonymous_bytes: int | None = None
    mapped_bytes: int | None = None
    cpu_ms: float = 0.0
    """Milliseconds of processor time for all queries, of all threads."""

    @property
    def milliseconds(self) -> list[float]:
        """Return the milliseconds of each whole query."""
        return list(map(sum, self.token_ms))


def measure(
    jobs: Mapping[str, Job], plan: Plan, advance: Callable[[str], None] = lambda name: None
) -> dict[str, list[ProcessRun]]:
    """The runs of every job by its name; ``advance`` is called after each turn (rounds × turns of each job)."""
    runs: dict[str, list[ProcessRun]] = {name: [] for name in jobs}
    for process in range(plan.processes):
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(WorkerProcess(name, job))
                for name, job in jobs.items()
                if process < plan.rounds(name)
            }
            for name, worker in workers.items():
                runs[name].append(_warm(worker, process, plan))
            for turn in range(plan.turns):
                for name in rotated(list(workers), process + turn):
                    interrupts.raise_if_pending()
                    _take_turn(workers[name], runs[name][-1], turn, plan)
                    advance(name)
    return runs


def rotated(names: list[str], by: int) -> list[str]:
    """Rotate which model goes first in each turn."""
    by %= len(names)
    return names[by:] + names[:by]


def _warm(worker: WorkerProcess, process: int, plan: Plan) -> ProcessRun:
    first = plan.rows - 1 - plan.warmup
    [first_ms] = map(sum, worker.run(first, 1)["token_ms"])
    left = WARM_SECONDS - first_ms / 1e3
    warmup = worker.run(first + 1, plan.warmup, left)["token_ms"] if plan.warmup and left > 0 else []
    return ProcessRun(process, worker.loaded, first_ms, list(map(sum, warmup)))


def _take_turn(worker: WorkerProcess, run: ProcessRun, turn: int, plan: Plan) -> None:
    """Bring the run to its share of queries, or of seconds, at the end of this turn: a slow model keeps step."""
    share = (turn + 1) / plan.turns
    seconds = None if plan.seconds is None else plan.seconds * share - sum(run.milliseconds) / 1e3
    if seconds is None or seconds > 0:
        _time(worker, run, math.ceil(plan.queries * share), seconds, plan)
    if turn == plan.turns - 1:
        _time(worker, run, LEAST, None, plan)


def _time(worker: WorkerProcess, run: ProcessRun, until: int, seconds: float | None, plan: Plan) -> None:
    done = len(run.queries)
    if done >= until:
        return
    start = run.process * plan.queries + done
    answer = worker.run(start, until - done, seconds)
    run.queries += range(start, start + len(answer["answers"]))
    run.answers += answer["answers"]
    run.token_ms += answer["token_ms"]
    run.cpu_ms += answer["cpu_ms"]
    for kind in MEMORY:
        setattr(run, kind, answer[kind])


def figures(runs: list[ProcessRun]) -> dict[str, float | list[float] | None]:
    """Return a model's figures over the samples of all processes; the median load time, the maximal memory."""
    samples = np.concatenate([run.milliseconds for run in runs])
    p50, p90, p99 = (float(p) for p in np.percentile(samples, (50, 90, 99)))
    medians = [statistics.median(run.milliseconds) for run in runs]
    mean = float(samples.mean())
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "mean_ms": mean,
        "queries_per_second": 1e3 / mean,
        "n": len(samples),
        "processes": len(runs),
        "process_p50_ms": [min(medians), max(medians)],
        "waiting_share": max(0.0, 1 - sum(run.cpu_ms for run in runs) / float(samples.sum())),
        "first_ms": statistics.median(run.first_ms for run in runs),
        "import_ms": statistics.median(run.loaded["import_ms"] for run in runs),
        "load_ms": statistics.median(run.loaded["load_ms"] for run in runs),
        "warmup_ratio": _warmup_ratio(runs, p50),
        **{kind: max(getattr(run, kind) or 0 for run in runs) or None for kind in MEMORY},
    }


def _warmup_ratio(runs: list[ProcessRun], p50: float) -> float | None:
    """Return how many times slower than the median the untimed queries after the first were, or None."""
    warmup = [milliseconds for run in runs for milliseconds in run.warmup_ms]
    return statistics.median(warmup) / p50 if warmup else None


def generation_figures(runs: list[ProcessRun]) -> dict[str, float | None]:
    """Return a generating model's further figures. Speeds are totals: all tokens over all their time.

    Prefill counts the views' tokens until the answers' first token, decode the answers' later tokens; None if no answer
    has a second token. view_tokens, answer_tokens: means of the tokens run before the first token, and of the answers.
    """
    view_tokens = np.concatenate([[run.loaded["view_tokens"][query] for query in run.queries] for run in runs])
    times = [np.array(times) for run in runs for times in run.token_ms]
    first, later = np.array([tokens[0] for tokens in times]), np.concatenate([tokens[1:] for tokens in times])
    p50, p90, p99 = np.percentile(later, (50, 90, 99)).tolist() if len(later) else (None, None, None)
    return {
        "first_token_ms": float(np.median(first)),
        "prefill_tokens_per_second": float(1e3 * view_tokens.sum() / first.sum()),
        "decode_tokens_per_second": float(1e3 * len(later) / later.sum()) if len(later) else None,
        "token_p50_ms": p50,
        "token_p90_ms": p90,
        "token_p99_ms": p99,
        "kv_bytes": runs[0].loaded["kv_bytes"],
        "view_tokens": float(view_tokens.mean()),
        "answer_tokens": float(np.mean(list(map(len, times)))),
    }


def agreement(runs: list[ProcessRun], expected: Mapping[int, list[int]]) -> float | None:
    """Return the share of queries with the expected answer, or None if ``expected`` has none of them."""
    same = [
        expected[query] == answer
        for run in runs
        for query, answer in zip(run.queries, run.answers, strict=True)
        if query in expected
    ]
    return sum(same) / len(same) if same else None
