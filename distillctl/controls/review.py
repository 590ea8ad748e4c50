"""Compare a model's held-out answers with those of ceiling, floor and controls, and caution early."""

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


def classify(arm: str, log_probs: np.ndarray, recipe: Recipe, workspace: Workspace) -> None:
    """Review an arm of `classify`. log_probs: [N, K], for every held-out row in the order of the views."""
    views, facts = _views(workspace), _facts(workspace)
    named = np.array(recipe.task.names)
    answers = {
        name: named[
            calibrate(label_shards.read(workspace, context, "eval").log_probs, facts["log_prior"]).argmax(-1)
        ].tolist()
        for name, context in (("ceiling", CEILING), ("floor", FLOOR))
    }
    answers |= {arm: named[log_probs.argmax(-1)].tolist(), **table.read(workspace, views.id, list(controls.CLASSIFY))}
    rows = {
        name: scores.label_scores(column, views.reference, answers["ceiling"])[0] for name, column in answers.items()
    }
    _review(arm, answers, rows, controls.CLASSIFY, facts["metric"])


def generate(arm: str, arm_answers: Sequence[str], recipe: Recipe, workspace: Workspace) -> None:
    """Review an arm of `generate`. arm_answers: for every held-out row in the order of the views."""
    views, task = _views(workspace), recipe.generate
    answers: dict[str, list[str]] = {
        name: response_shards.read(workspace, context, "eval", TextLabels(Text())).text
        for name, context in (("ceiling", CEILING), ("floor", FLOOR))
    }
    answers |= {arm: list(arm_answers), **table.read(workspace, views.id, list(controls.GENERATE))}
    against = (views.reference, answers["ceiling"], task.format)
    rows = {name: text.row_scores(task.score, column, *against) for name, column in answers.items()}
    _review(arm, answers, rows, controls.GENERATE, text.metric_name(task.score, views.reference))


def capped(learned_from: int, rows: int) -> None:
    """Caution that the controls had fewer train rows than the student."""
    if learned_from < rows:
        cautions.add(
            "controls-capped",
            f"The controls learned from the first {learned_from:,} of {rows:,} train rows. With all of them they might "
            "score higher.",
        )


def _review(
    arm: str,
    answers: Mapping[str, Sequence[str]],
    rows: Mapping[str, np.ndarray],
    controls: Mapping[str, str],
    metric: str,
) -> None:
    doubts.collapse(arm, answers[arm], answers["ceiling"])
    doubts.weak(arm, rows, metric)
    doubts.against_controls(arm, rows, controls, metric)


def _views(workspace: Workspace) -> view_table.ViewTable:
    return view_table.read(workspace.folder("collect") / "views.parquet", "eval")


def _facts(workspace: Workspace) -> dict[str, Any]:
    collect = workspace.manifest("collect")
    assert collect is not None
    return collect.facts
