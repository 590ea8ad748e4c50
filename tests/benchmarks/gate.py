"""make bench-gate: how often the regression gate cries wolf, and how often it sees a wolf.

A run's deployed classifier is compared with itself, and with itself in a worker that spins for 5 % of each query after
it (`tests.benchmarks.slowed_worker`), each time by the gate's own function, with nothing else kept from comparison
to comparison. A false alarm is an A/A comparison that fails; how many say that there is any difference at all, where a
bound plays no part, tells whether the intervals hold. Prints a line per kind, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console
from distillctl.data import view_table
from distillctl.errors import UpstreamError, UserFacingError
from distillctl.regression import paired_timing
from distillctl.regression.paired_timing import BenchTarget
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes import machine
from tests import python_path

SLOWDOWN, MAX_SLOWDOWN = 0.05, 0.02
"""What is injected, and what the gate lets pass: anything below what has to be caught."""
MAX_SECONDS = 60.0
SLOWED = "tests.benchmarks.slowed_worker"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gate")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="a classifier's run directory")
    parser.add_argument("--aa", type=int, default=200, help="comparisons of the graph with itself")
    parser.add_argument("--tries", type=int, default=100, help="comparisons with the slowed one")
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = python_path()
    own, slowed = _sides(Workspace(options.run_dir))
    began, kinds = time.perf_counter(), _shuffled(options.aa, options.tries)
    found: dict[str, list[dict[str, Any]]] = {"aa": [], "slowed": []}
    for number, kind in enumerate(kinds, 1):
        one = paired_timing.compare_latency(
            own if kind == "aa" else slowed, own, max_ratio=1 + MAX_SLOWDOWN, max_seconds=MAX_SECONDS
        ).facts()
        found[kind].append(one)
        console.note(
            f"{number:4}/{len(kinds)} {kind:7} {one['verdict']:10} {one['ratio'] - 1:+.2%} in {one['pairs']} pairs, "
            f"{one['seconds']:.1f} s"
        )
    figures = _figures(found) | {"seconds": time.perf_counter() - began, "machine": machine.describe().as_json()}
    _told(figures)
    console.text(json.dumps(figures))


def _sides(workspace: Workspace) -> tuple[BenchTarget, BenchTarget]:
    """The deployed classifier on its held-out rows, as it is and slowed."""
    folder = workspace.folder("quantize")
    if workspace.manifest("quantize") is None or not (folder / "model.onnx").is_file():
        raise UpstreamError("no deployed graph", where=str(workspace.root), next="distillctl run recipes/demo.yaml")
    texts = view_table.read(workspace.folder("collect") / "views.parquet", "eval").simplified
    order = np.random.default_rng(0).permutation(len(texts))
    job = {"runtime": "onnx", "threads": 1, "folder": str(folder), "texts": [texts[row] for row in order]}
    return BenchTarget(job), BenchTarget(job | {"slowdown": SLOWDOWN}, SLOWED)


def _shuffled(aa: int, tries: int) -> list[str]:
    """Both kinds over the whole time, so that neither has the quieter part of it."""
    kinds = ["aa"] * aa + ["slowed"] * tries
    return [kinds[n] for n in np.random.default_rng(0).permutation(len(kinds))]


def _figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    aa, slowed = found["aa"], found["slowed"]
    every = [*aa, *slowed]
    return {
        "aa_runs": len(aa),
        "false_alarms": _count(aa, "slower"),
        "passed": _count(aa, "fine"),
        "undecided": _count(aa, "undecided"),
        # A/A intervals that leave out 0: at most 5 % in the long run
        "aa_intervals_without_0": sum(one["low"] > 1 or one["high"] < 1 for one in aa if one["low"] is not None),
        "tries": len(slowed),
        "caught": _count(slowed, "slower"),
        "missed": _count(slowed, "fine"),
        "undecided_tries": _count(slowed, "undecided"),
        "median_slowdown_found": statistics.median(one["ratio"] for one in slowed) - 1 if slowed else None,
        "slowdown": SLOWDOWN,
        "max_slowdown": MAX_SLOWDOWN,
        "pair_spread": statistics.median(one["pair_spread"] for one in every),
        "seconds_per_comparison": statistics.mean(one["seconds"] for one in every),
        "most_seconds": max(one["seconds"] for one in every),
    }


def _count(found: list[dict[str, Any]], verdict: str) -> int:
    return sum(one["verdict"] == verdict for one in found)


def _told(figures: dict[str, Any]) -> None:
    console.text(
        f"the graph against itself: {figures['aa_runs']} comparisons, {figures['false_alarms']} false alarms, "
        f"{figures['undecided']} undecided"
    )
    console.text(
        f"{SLOWDOWN:.0%} slower: {figures['tries']} comparisons, {figures['caught']} caught, "
        f"{figures['missed']} missed, {figures['undecided_tries']} undecided"
    )
    console.text(
        f"{figures['seconds_per_comparison']:.1f} s a comparison in the mean, {figures['most_seconds']:.1f} s at most; "
        f"pairs differ by {figures['pair_spread']:.2%} (standard deviation)"
    )


if __name__ == "__main__":
    try:
        main()
    except UserFacingError as problem:
        console.error(problem)
        raise SystemExit(problem.exit_code) from None
