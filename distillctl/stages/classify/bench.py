"""bench: latency, memory and size of the teacher and of both graphs, the way a phone would see them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distillctl.data import eval_table
from distillctl.graphs import sidecar_files, teacher_graph
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.bench import Answers, Bench
from distillctl.soft_labels import label_shards
from distillctl.soft_labels import labels as soft_labels


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Time all models on the same eval rows."""
    for stage in ("export", "quantize"):
        sidecar_files.try_out(workspace.folder(stage), "onnx", f"distillctl {stage} RECIPE --force")
    bench, task = Bench(recipe, workspace), recipe.classify
    log_prior = bench.facts("collect")["log_prior"]
    words = list(task.labels.values())
    jobs = (
        bench.teachers(teacher_graph.build, label_words=words, log_prior=log_prior)
        | bench.student("fp32", "onnx")
        | bench.student("deployed", "onnx")
    )
    collected = label_shards.read(workspace, "full", "eval")
    teacher = _top(collected.ids, soft_labels.calibrate(collected.log_probs, log_prior))
    expected = {
        "teacher": teacher,
        "teacher_genai": teacher,
        "fp32": _evaluated(workspace.folder("train"), "student"),
        "deployed": _evaluated(workspace.folder("quantize"), "deployed"),
    }
    return bench.run(jobs, expected, lambda runs: {"label": [label for run in runs for [label] in run.answers]})


def _top(ids: Iterable[str], log_probs: Iterable[np.ndarray]) -> Answers:
    return {row: [int(np.argmax(found))] for row, found in zip(ids, log_probs, strict=True)}


def _evaluated(folder: Path, column: str) -> Answers:
    """The label in an eval.parquet."""
    found = eval_table.by_row(folder / "eval.parquet", column)
    return _top(found, found.values())
