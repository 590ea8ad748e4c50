"""bench: latency, memory and size of the teacher and of both graphs, the way a phone would see them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl import console, references
from distillctl.data import view_table
from distillctl.recipe import Recipe
from distillctl.runtimes import machine
from distillctl.runtimes.interleaved import LEAST, Job, Plan, Run, agreement, figures, measure
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels import store
from distillctl.workspace import Outcome, Workspace, replacing_folder, versions, write_text

LEAST_AGREEMENT = 0.99


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Time all four models on the same eval rows; everything runs on the CPU with ``bench.threads`` threads.

    The teacher is timed as a service would run it, in PyTorch under its full context, with and without its prompt
    cached. What is counted where: `distillctl.runtimes.worker`; how turns are taken: `distillctl.runtimes.interleaved`.
    """
    settings = recipe.bench
    plan = Plan(
        processes=settings.processes,
        queries=max(LEAST, math.ceil(settings.queries / settings.processes)),
        warmup=settings.warmup,
        seconds=None if settings.max_seconds is None else settings.max_seconds / settings.processes,
    )
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    # A seeded sample; over again when there are fewer rows than queries.
    sample = np.resize(np.random.default_rng(recipe.seed).permutation(len(views.id)), plan.rows).tolist()
    jobs = _jobs(recipe, workspace, views, sample)
    before = machine.facts()
    console.note(f"timing {len(jobs)} models in {plan.processes} fresh processes each, {settings.threads} thread(s)")
    with console.progress("bench", plan.processes * plan.turns * len(jobs)) as bar:
        runs = measure(jobs, plan, lambda name: bar.advance(model=name))
    models = {name: _sizes(name, runs[name], recipe, workspace) | figures(runs[name]) for name in jobs}
    facts: dict[str, Any] = {
        "models": models,
        "machine": before,
        "threads": settings.threads,
        "ratios": {n: m["p50_ms"] / models["deployed"]["p50_ms"] for n, m in models.items() if n != "deployed"},
        "agreement": _agreement(workspace, runs, [views.id[row] for row in sample]),
    }
    workspace.retract("bench")
    for name, share in facts["agreement"].items():
        if share is not None and share < LEAST_AGREEMENT:
            console.warn(f"{name} gave the expected label in {share:.1%} of its timed queries only: look into it")
    return Outcome(_write(workspace.folder("bench"), facts, runs, [views.id[row] for row in sample]), facts)


def _jobs(recipe: Recipe, workspace: Workspace, views: view_table.ViewTable, sample: list[int]) -> dict[str, Job]:
    threads = recipe.bench.threads
    source = references.teacher(recipe)
    teacher = {
        "runtime": "torch",
        "threads": threads,
        "texts": [views.full[row] for row in sample],
        "teacher": recipe.teacher.model_copy(update={"device": "cpu", "threads": threads}).model_dump(),
        "source": {
            "reference": source.reference,
            "path": source.path and str(source.path),
            "revision": source.revision,
        },
        "answers": [recipe.classify.answer_prefix + words for words in recipe.classify.labels.values()],
        "log_prior": _log_prior(workspace),
        "chat": recipe.contexts.full.messages is not None,
    }
    student = {"runtime": "onnx", "threads": threads, "texts": [views.simplified[row] for row in sample]}
    return {
        "teacher": {**teacher, "cached": False},
        "teacher_cached": {**teacher, "cached": True},
        "fp32": {**student, "folder": str(workspace.folder("export"))},
        "deployed": {**student, "folder": str(workspace.folder("quantize"))},
    }


def _log_prior(workspace: Workspace) -> list[float] | None:
    collected = workspace.manifest("collect")
    assert collected is not None
    log_prior: list[float] | None = collected.facts["log_prior"]
    return log_prior


def _sizes(name: str, runs: list[Run], recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """bytes: of the graph's file (with external data), of the teacher's weights as loaded; file_bytes: of its file."""
    if name in ("fp32", "deployed"):
        folder = workspace.folder("export" if name == "fp32" else "quantize")
        return {"bytes": sum(file.stat().st_size for file in folder.glob("model.onnx*"))}
    path = references.teacher(recipe).path
    weights = [] if path is None else [path] if path.is_file() else path.glob("*.safetensors")
    return {
        "bytes": runs[0].loaded["bytes"],
        "file_bytes": sum(file.stat().st_size for file in weights) or None,
        "cached_tokens": runs[0].loaded["cached_tokens"],
    }


def _agreement(workspace: Workspace, runs: dict[str, list[Run]], rows: list[str]) -> dict[str, float | None]:
    """Share of timed queries answered with the label expected: the teacher's own soft label, the uncached teacher's
    for the cached one (where both answered), the label in their eval.parquet for the students."""
    collected = store.read(workspace, "full", "eval")
    soft = soft_labels.calibrate(collected.log_probs, _log_prior(workspace))
    expected = {
        "teacher": dict(zip(collected.ids, soft, strict=True)),
        "fp32": _evaluated(workspace.folder("train"), "student"),
        "deployed": _evaluated(workspace.folder("quantize"), "deployed"),
    }
    uncached = {q: label for run in runs["teacher"] for q, label in zip(run.queries, run.labels, strict=True)}
    shares = {"teacher_cached": agreement(runs["teacher_cached"], uncached)}
    for name, log_probs in expected.items():
        top = {query: int(np.argmax(log_probs[row])) for query, row in enumerate(rows)}
        shares[name] = agreement(runs[name], top)
    return shares


def _evaluated(folder: Path, column: str) -> dict[str, list[float]]:
    """Row id → normalised label log-probabilities [K]."""
    table = pq.read_table(folder / "eval.parquet", columns=["id", column]).to_pydict()
    return dict(zip(table["id"], table[column], strict=True))


def _write(folder: Path, facts: dict[str, Any], runs: dict[str, list[Run]], ids: list[str]) -> list[str]:
    with replacing_folder(folder / "samples") as samples:
        for name, model_runs in runs.items():
            table = {
                "process": [run.process for run in model_runs for _ in run.queries],
                "query": [query for run in model_runs for query in run.queries],
                "milliseconds": [ms for run in model_runs for ms in run.milliseconds],
                "label": [label for run in model_runs for label in run.labels],
            }
            pq.write_table(pa.table(table), samples / f"{name}.parquet")
    details = {
        name: {
            "samples": f"samples/{name}.parquet",
            "runs": [
                {**run.loaded, "first_ms": run.first_ms, "warmup_ms": run.warmup_ms, "n": len(run.queries)}
                | {"peak_rss_bytes": run.peak_rss_bytes}
                for run in model_runs
            ],
        }
        for name, model_runs in runs.items()
    }
    models = {name: facts["models"][name] | details[name] for name in runs}
    # rows: the query of a sample → the id of its example
    results = {**facts, "models": models, "versions": versions(), "rows": ids}
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return ["results.json", "samples"]
