"""Compare the first part of a long run with the last, because a device that heats up slows down."""

from __future__ import annotations

import itertools
import statistics

from distillctl import console, interrupts
from distillctl.run_dir.bench_facts import SustainedTimes
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess

PART_SECONDS = 60.0
"""Length of the compared parts; at most a third of the run."""
_ASK_SECONDS = 2.0


def measure(job: Job, seconds: float) -> SustainedTimes:
    """Run the job's texts again and again for ``seconds``, in one fresh process that is warm."""
    times: list[float] = []
    spent, at = 0.0, 0
    with WorkerProcess("deployed", job) as worker, console.progress("sustained", seconds, "seconds") as bar:
        worker.run(0, len(job["texts"]), 1.0)
        while spent < seconds:
            interrupts.raise_if_pending()
            part = [sum(ms) for ms in worker.run(at, len(job["texts"]) - at, _ASK_SECONDS)["token_ms"]]
            at = (at + len(part)) % len(job["texts"])
            times += part
            spent += sum(part) / 1e3
            bar.advance(sum(part) / 1e3)
    length = min(PART_SECONDS, seconds / 3)
    first, last = (_until(times_in_order, length) for times_in_order in (times, times[::-1]))
    first_p50_ms, last_p50_ms = statistics.median(first), statistics.median(last)
    return SustainedTimes(
        seconds=spent,
        queries=len(times),
        part_seconds=length,
        first_p50_ms=first_p50_ms,
        last_p50_ms=last_p50_ms,
        ratio=last_p50_ms / first_p50_ms,
    )


def _until(times: list[float], seconds: float) -> list[float]:
    """Return the first of ``times`` that fill ``seconds``, at least one."""
    sums = itertools.accumulate(times)
    return times[: 1 + sum(1 for total in sums if total < 1e3 * seconds)]
