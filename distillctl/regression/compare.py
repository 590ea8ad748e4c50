"""The comparison of `bench --against`: whether a deployed graph is slower or larger than another run's.

Both are measured here and now, in turns (`paired_timing`). Earlier measurements are not used; they are only shown to
the reader where the machines are alike. Nothing is written into either run directory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console, pipeline, tasks
from distillctl.data import view_table
from distillctl.errors import DataError, UpstreamError, UsageError
from distillctl.graphs import sidecar_files
from distillctl.recipe import Recipe
from distillctl.regression import paired_timing, sequential_test
from distillctl.regression.paired_timing import BenchTarget
from distillctl.run_dir import run_marker
from distillctl.run_dir.bench_facts import BenchFacts
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes import machine
from distillctl.runtimes.onnxruntime import graph_bytes

NEEDED = ("collect", "quantize")
"""The stages whose files are read, for the texts and the graph."""


@dataclass(frozen=True)
class Bounds:
    """The largest differences that pass, as shares (0.05 for 5 %), and the most seconds to measure."""

    max_slowdown: float = 0.05
    max_size_growth: float = 0.02
    max_seconds: float = 300.0


def bounds(max_slowdown: str | None, max_size_growth: str | None, max_seconds: float | None) -> Bounds:
    """Build bounds from the command's options; missing ones keep their defaults."""
    given: dict[str, float | None] = {
        "max_slowdown": None if max_slowdown is None else share(max_slowdown, "--max-slowdown"),
        "max_size_growth": None if max_size_growth is None else share(max_size_growth, "--max-size-growth"),
        "max_seconds": max_seconds,
    }
    return Bounds(**{name: value for name, value in given.items() if value is not None})


def share(text: str, option: str) -> float:
    """Parse "5%" or "0.05" as 0.05. Raise UsageError otherwise."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{text!r} is no share between 0 and 1", where=option, next=f"{option} 5%")
    return value


def compare(recipe: Recipe, workspace: Workspace, against: Path, bounds: Bounds) -> dict[str, Any]:
    """Compare this run's deployed graph with another run's. ``verdict``: "failed" | "passed" | "undecided".

    Raise UpstreamError where either run lacks the files to measure, or where the tasks differ, and DataError where the
    runs share no held-out row.
    """
    other = Workspace(against)
    with workspace.lock():
        # It is about what the recipe makes, so the graph must be the recipe's.
        upstream = pipeline.STAGES["bench"].upstream
        pipeline.require("bench --against", upstream, pipeline.status(recipe, workspace), recipe, workspace)
        run_marker.refuse_links(other.root)
        _whole(recipe, other)
        own_bytes, other_bytes = (graph_bytes(run.folder("quantize")) for run in (workspace, other))
        ours, theirs, measured = _sides(recipe, workspace, other)
        for side, command in ((ours, "quantize RECIPE"), (theirs, "quantize RECIPE --run-dir THAT --force")):
            sidecar_files.try_out(Path(side.job["folder"]), side.job["runtime"], f"distillctl {command}")
        rows = len(ours.job["texts"])
        console.note(f"timing both deployed graphs in pairs of fresh processes, {rows:,} rows in turns")
        with console.progress("timing", max(sequential_test.LOOKS), "pairs") as bar:
            timed = paired_timing.compare_latency(
                ours,
                theirs,
                max_ratio=1 + bounds.max_slowdown,
                max_seconds=bounds.max_seconds,
                advance=bar.advance,
            ).facts()
    growth = own_bytes / other_bytes - 1
    too_large = growth > bounds.max_size_growth
    speed = {"slower": "failed", "fine": "passed", "undecided": "undecided"}[timed["verdict"]]
    return {
        "verdict": "failed" if too_large else speed,
        "run_dir": str(workspace.root),
        "against": str(other.root),
        "latency": {**timed, "verdict": speed, "max_slowdown": bounds.max_slowdown, "measured": measured},
        "size": {
            "verdict": "failed" if too_large else "passed",
            "bytes": own_bytes,
            "other_bytes": other_bytes,
            "growth": growth,
            "max_growth": bounds.max_size_growth,
        },
        "recorded": _recorded(workspace, other),
        "threads": recipe.bench.used_threads,
        "machine": machine.describe().as_json(),
    }


def _whole(recipe: Recipe, other: Workspace) -> None:
    where = str(other.root)
    for stage in NEEDED:
        manifest = other.manifest(stage)
        if manifest is None:
            raise UpstreamError(f"{stage} is missing there", where=where, next=f"distillctl {stage} RECIPE")
        if damage := other.damage(stage, manifest):
            raise UpstreamError(damage, where=where, next=f"distillctl {stage} RECIPE --force")
        if stage == "collect" and (kind := manifest.recipe["task"]["kind"]) != recipe.task.kind:
            raise UpstreamError(
                f"its task is {kind}, this one's {recipe.task.kind}: they do not do the same", where=where
            )


def _sides(recipe: Recipe, run: Workspace, other: Workspace) -> tuple[BenchTarget, BenchTarget, str]:
    """Return both jobs for the held-out rows that both runs share, each with the text of its own student."""
    known = [view_table.read(side.folder("collect") / "views.parquet", "eval") for side in (run, other)]
    texts = [dict(zip(zip(v.id, v.input, strict=True), v.simplified, strict=True)) for v in known]
    rows = [row for row in texts[0] if row in texts[1]]
    if not rows:
        raise DataError("the runs share no held-out row", where=str(other.root))
    rows = [rows[n] for n in np.random.default_rng(recipe.seed).permutation(len(rows))]
    job, measured = tasks.of(recipe, run).paired_job()
    job |= {"threads": recipe.bench.used_threads}
    own_side, other_side = (
        BenchTarget({**job, "folder": str(side.folder("quantize")), "texts": [views[row] for row in rows]})
        for side, views in zip((run, other), texts, strict=True)
    )
    return own_side, other_side, measured


def _recorded(run: Workspace, other: Workspace) -> dict[str, Any] | None:
    """Return the p50 that each run's bench recorded, for the reader; the verdict does not look at it.

    ``unlike`` stands in place of a ratio where the machines were not alike. None where either run has no bench.
    """
    benches = [bench.read(BenchFacts) for side in (run, other) if (bench := side.manifest("bench"))]
    if len(benches) < 2:
        return None
    ours, theirs = benches
    p50 = {"own_p50_ms": ours.models["deployed"].p50_ms, "other_p50_ms": theirs.models["deployed"].p50_ms}
    if ours.threads != theirs.threads:
        return {**p50, "unlike": f"threads: {ours.threads} / {theirs.threads}"}
    if why := machine.unlike(ours.machine, theirs.machine):
        return {**p50, "unlike": why}
    return {**p50, "ratio": p50["own_p50_ms"] / p50["other_p50_ms"]}
