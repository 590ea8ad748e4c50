"""train: the student, on the simplified context; and, if asked, a control on the teacher's hard labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl import ranks
from distillctl.data import view_table
from distillctl.data.view_table import ViewTable
from distillctl.metrics import scores
from distillctl.recipe import CrossEntropy, LossTerm, Recipe, implementation
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels import store
from distillctl.students.student import Corpus, Student
from distillctl.training import folder as train_folder
from distillctl.training.classification import Classification, Rows, predict
from distillctl.training.loop import Fit, Run, hold_out
from distillctl.workspace import Outcome, Workspace, replacing


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Train, measure on the eval rows, save the best weights."""
    folder = train_folder.prepare(recipe, workspace)
    path = workspace.folder("collect") / "views.parquet"
    views = {split: view_table.read(path, split) for split in ("train", "eval")}
    student, fit, predictions, facts = _train(recipe, workspace, views, "student", recipe.train.loss)
    facts |= fit.facts | {
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "max_length": student.max_length,
        "control": None,
    }
    columns: dict[str, np.ndarray | None] = {"student": predictions, "control": None}
    if recipe.train.control:
        _, _, columns["control"], facts["control"] = _train(recipe, workspace, views, "control", (CrossEntropy(),))
    if ranks.is_first():
        train_folder.save(student, folder / "model", cut=recipe.contexts.truncate == "input")
        _write_predictions(folder / "eval.parquet", views["eval"].id, columns)
    return Outcome(outputs=["model", "metrics.jsonl", "eval.parquet"], facts=facts)


def _train(
    recipe: Recipe, workspace: Workspace, views: dict[str, ViewTable], name: str, terms: tuple[LossTerm, ...]
) -> tuple[Student, Fit, np.ndarray, dict[str, Any]]:
    set_seed(recipe.seed)
    corpus = Corpus(views["train"].simplified, [], Corpus(views["eval"].simplified, []))
    student: Student = implementation(recipe.student)(recipe.student, recipe, corpus)
    rows, held_out = (_rows(recipe, workspace, views[split], student, split) for split in ("train", "eval"))
    train, validation = map(rows.take, hold_out(range(len(rows.ids)), recipe.train.validation, recipe.seed))
    problem = Classification(train, validation, terms, student.tokenizer, recipe.train)
    checkpoints = train_folder.checkpoints(recipe, workspace, name)
    fit = Run(name, student.model, problem, recipe.train, recipe.seed, checkpoints).fit(
        workspace.folder("train") / "metrics.jsonl"
    )
    found = predict(student.model, student.tokenizer, held_out, recipe.train)
    figures: dict[str, Any] = {
        "kl": scores.kl(held_out.teacher, found),
        "agreement": scores.same_top(held_out.teacher, found),
    }
    return student, fit, found, figures


def _rows(recipe: Recipe, workspace: Workspace, views: ViewTable, student: Student, split: str) -> Rows:
    collect = workspace.manifest("collect")
    assert collect is not None
    labels = store.read(workspace, "full", split)
    ids = student.encode(views.simplified, views.id, cut=recipe.contexts.truncate == "input")
    return Rows(ids, soft_labels.calibrate(labels.log_probs, collect.facts["log_prior"]))


def _write_predictions(path: Path, ids: list[str], columns: dict[str, np.ndarray | None]) -> None:
    kind = pa.list_(pa.float32())
    arrays = {
        name: pa.nulls(len(ids), kind) if values is None else pa.array(list(values), kind)
        for name, values in columns.items()
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table({"id": ids, **arrays}), temporary)
