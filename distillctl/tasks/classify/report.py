"""The part of the report that only a run with labels has."""

from __future__ import annotations

import numpy as np

from distillctl.data import controls_table, eval_table
from distillctl.data.view_table import ViewTable
from distillctl.metrics.scores import label_scores, row_scores
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import GraphInputs
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import calibrate
from distillctl.tasks.classify.facts import (
    ClassifyCollect,
    ClassifyReport,
    Disagreement,
    LabelAgreement,
    LabelParity,
    LabelVerdicts,
    TopLabel,
)


def compare(
    recipe: Recipe, workspace: Workspace, views: ViewTable, *, deployed: bool
) -> tuple[dict[str, np.ndarray], ClassifyReport]:
    """Return each arm's score per held-out row, float64 [N], and this kind's part of the report.

    deployed: whether quantize chose a graph; otherwise the student stands in for it.
    """
    last = "deployed" if deployed else "student"
    collect = workspace.facts("collect", ClassifyCollect)
    log_probs = _predictions(workspace, views.id, collect.log_prior, deployed=deployed)
    names = recipe.task.names
    scores = {
        arm: row_scores(predicted, names, views.reference, log_probs["ceiling"])[0]
        for arm, predicted in log_probs.items()
    }
    ceiling = [names[top] for top in log_probs["ceiling"].argmax(-1)]
    for control, answers in controls_table.read(workspace, views.id, list(recipe.task.controls)).items():
        scores[control] = label_scores(answers, views.reference, ceiling)[0]
    parity = workspace.facts("export", LabelParity)
    return scores, ClassifyReport(
        labels=names,
        artifact="quantize/model.onnx" if deployed else None,
        snippets=["classify.py", "Classifier.kt", "Classifier.swift"],
        inputs=workspace.facts("export", GraphInputs).inputs,
        parity=LabelAgreement(
            max_logit_difference=parity.max_logit_difference, same_top=parity.same_top, rows=parity.rows
        ),
        verdicts=_verdicts(log_probs, scores, last),
        disagreements=_disagreements(recipe, views, log_probs, last),
    )


def _predictions(
    workspace: Workspace, ids: list[str], log_prior: list[float] | None, *, deployed: bool
) -> dict[str, np.ndarray]:
    """Return arm → normalised label log-probabilities [N, K] of the held-out rows, in the order of ``ids``."""
    teacher = {
        arm: calibrate(label_shards.read(workspace, context, "eval").log_probs, log_prior)
        for arm, context in (("ceiling", "full"), ("floor", "simplified"))
    }
    for stage, column in (("train", "student"), ("quantize", "deployed"))[: 1 + deployed]:
        path = workspace.folder(stage) / "eval.parquet"
        teacher |= eval_table.log_probs(path, ids, column, teacher["ceiling"].shape[1])
    return teacher


def _verdicts(log_probs: dict[str, np.ndarray], scores: dict[str, np.ndarray], last: str) -> LabelVerdicts:
    """Count where the top labels of ceiling and ``last`` differ, and which of the two was right when one was."""
    ceiling, deployed = scores["ceiling"] > 0, scores[last] > 0
    return LabelVerdicts(
        rows=len(ceiling),
        different=int((log_probs["ceiling"].argmax(-1) != log_probs[last].argmax(-1)).sum()),
        only_teacher_right=int((ceiling & ~deployed).sum()),
        only_deployed_right=int((deployed & ~ceiling).sum()),
    )


def _disagreements(recipe: Recipe, views: ViewTable, log_probs: dict[str, np.ndarray], last: str) -> list[Disagreement]:
    """Return the rows with the largest total variation, ½ Σ|P − Q|, between both models, the largest first."""
    teacher, deployed = (np.exp(log_probs[arm]) for arm in ("ceiling", last))
    distance = np.abs(teacher - deployed).sum(axis=1) / 2
    furthest = np.argsort(-distance, kind="stable")[: recipe.report.disagreements]
    return [
        Disagreement(
            input=views.input[row],
            reference=views.reference[row],
            distance=float(distance[row]),
            teacher=_top(recipe.task.names, teacher[row]),
            deployed=_top(recipe.task.names, deployed[row]),
        )
        for row in furthest.tolist()
    ]


def _top(names: list[str], probabilities: np.ndarray) -> TopLabel:
    return TopLabel(label=names[int(probabilities.argmax())], probability=float(probabilities.max()))
