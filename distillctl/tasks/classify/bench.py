"""The models that bench times where the response is a label, and the answers expected of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distillctl.data import eval_table
from distillctl.graphs import teacher_graph
from distillctl.runtimes.bench import Answers, BenchSession
from distillctl.soft_labels import label_shards
from distillctl.soft_labels import labels as soft_labels
from distillctl.tasks.base import BoundTask, Timing
from distillctl.tasks.classify.facts import ClassifyCollect


def timing(task: BoundTask, bench: BenchSession) -> Timing:
    """Time the teacher and both graphs until each has chosen a label."""
    log_prior = task.workspace.facts("collect", ClassifyCollect).log_prior
    words = list(task.recipe.classify.labels.values())
    jobs = (
        bench.teachers(teacher_graph.build, label_words=words, log_prior=log_prior)
        | bench.student("fp32", task.runtime)
        | bench.student("deployed", task.runtime)
    )
    collected = label_shards.read(task.workspace, "full", "eval")
    teacher = _top(collected.ids, soft_labels.calibrate(collected.log_probs, log_prior))
    expected = {
        "teacher": teacher,
        "teacher_genai": teacher,
        "fp32": _evaluated(task.workspace.folder("train"), "student"),
        "deployed": _evaluated(task.workspace.folder("quantize"), "deployed"),
    }
    return Timing(jobs, expected, lambda runs: {"label": [label for run in runs for [label] in run.answers]})


def _top(ids: Iterable[str], log_probs: Iterable[np.ndarray]) -> Answers:
    return {row: [int(np.argmax(row_log_probs))] for row, row_log_probs in zip(ids, log_probs, strict=True)}


def _evaluated(folder: Path, column: str) -> Answers:
    """Return the labels in an eval.parquet."""
    log_probs = eval_table.by_row(folder / "eval.parquet", column)
    return _top(log_probs, log_probs.values())
