"""A model's held-out answers beside those of ceiling, floor and controls: cautions, as soon as they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distillctl import cautions, controls
from distillctl.controls import table
from distillctl.data import view_table
from distillctl.data.views import CEILING, FLOOR
from distillctl.metrics import doubts, scores, text
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards, response_shards
from distillctl.soft_labels.labels import calibrate
from distillctl.soft_labels.text import TextLabels


def labels(arm: str, log_probs: np.ndarray, recipe: Recipe, workspace: Workspace) -> None:
    """log_probs: the arm's, of every held-out row in the order of the views [N, K]."""
    views, facts = _views(workspace), _facts(workspace)
    named = np.array(recipe.task.names)
    said = {
        name: named[
            calibrate(label_shards.read(workspace, context, "eval").log_probs, facts["log_prior"]).argmax(-1)
        ].tolist()
        for name, context in (("ceiling", CEILING), ("floor", FLOOR))
    }
    said |= {arm: named[log_probs.argmax(-1)].tolist(), **table.read(workspace, views.id, list(controls.LABELS))}
    rows = {name: scores.label_scores(own, views.reference, said["ceiling"])[0] for name, own in said.items()}
    _review(arm, said, rows, controls.LABELS, facts["metric"])


def texts(arm: str, answers: Sequence[str], recipe: Recipe, workspace: Workspace) -> None:
    """answers: the arm's, to every held-out row in the order of the views."""
    views, task = _views(workspace), recipe.generate
    said: dict[str, list[str]] = {
        name: response_shards.read(workspace, context, "eval", TextLabels(Text())).text
        for name, context in (("ceiling", CEILING), ("floor", FLOOR))
    }
    said |= {arm: list(answers), **table.read(workspace, views.id, list(controls.TEXTS))}
    against = (views.reference, said["ceiling"], task.format)
    rows = {name: text.row_scores(task.score, own, *against) for name, own in said.items()}
    _review(arm, said, rows, controls.TEXTS, text.metric_name(task.score, views.reference))


def capped(learned_from: int, rows: int) -> None:
    """Tell that the controls had fewer train rows than the student."""
    if learned_from < rows:
        cautions.add(
            "controls-capped",
            f"The controls learned from the first {learned_from:,} of {rows:,} train rows; with all of them they might "
            "score higher.",
        )


def _review(
    arm: str,
    said: Mapping[str, Sequence[str]],
    rows: Mapping[str, np.ndarray],
    controls: Mapping[str, str],
    metric: str,
) -> None:
    doubts.collapse(arm, said[arm], said["ceiling"])
    doubts.weak(arm, rows, metric)
    doubts.against_controls(arm, rows, controls, metric)


def _views(workspace: Workspace) -> view_table.ViewTable:
    return view_table.read(workspace.folder("collect") / "views.parquet", "eval")


def _facts(workspace: Workspace) -> dict[str, Any]:
    collect = workspace.manifest("collect")
    assert collect is not None
    return collect.facts
