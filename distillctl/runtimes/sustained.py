"""Compare the first part of a long run with the last, because a device that heats up slows down."""

from __future__ import annotations

import statistics
from typing import Any

from distillctl import console, interrupts
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess

PART_SECONDS = 60.0
"""What is compared at either end, but no more than a third of the run."""
_ASK_SECONDS = 2.0


def measure(job: Job, seconds: float) -> dict[str, Any]:
    """Run the job's texts over and over for so long, in one fresh process that is warm.

    first_p50_ms, last_p50_ms: of the queries of either end, part_seconds each; ratio: last over first.
    """
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
    first, last = (_until(one, length) for one in (times, times[::-1]))
    return {
        "seconds": spent,
        "queries": len(times),
        "part_seconds": length,
        "first_p50_ms": statistics.median(first),
        "last_p50_ms": statistics.median(last),
        "ratio": statistics.median(last) / statistics.median(first),
    }


def _until(times: list[float], seconds: float) -> list[float]:
    """The first of ``times`` that fill so many seconds; one at least."""
    found: list[float] = []
    for one in times:
        found.append(one)
        seconds -= one / 1e3
        if seconds <= 0:
            break
    return found
