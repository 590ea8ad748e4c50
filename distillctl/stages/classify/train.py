"""train: the student, on the simplified context; and, if asked, a control on the teacher's hard labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl import ranks
from distillctl.controls import MOST_ROWS, review
from distillctl.controls import labels as label_controls
from distillctl.controls import table as controls
from distillctl.data import view_table
from distillctl.data.disk_rows import Picked, Spool
from distillctl.errors import UpstreamError
from distillctl.metrics import scores
from distillctl.recipe import CrossEntropy, LossTerm, Recipe, implementation
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing
from distillctl.soft_labels import label_shards
from distillctl.soft_labels import labels as soft_labels
from distillctl.students.student import Again, Corpus, Student
from distillctl.training import train_dir as train_folder
from distillctl.training.classification import Classification, Rows, predict
from distillctl.training.loop import Fit, Run, hold_out


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Train, measure on the eval rows, save the best weights."""
    folder = train_folder.prepare(recipe, workspace)
    student = _student(recipe, workspace)
    data = {split: _rows(workspace, student, split) for split in ("train", "eval")}
    fit, predictions, facts = _train(recipe, workspace, student, data, "student", recipe.train.loss)
    facts |= fit.facts | {
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "max_length": student.max_length,
        "cut_inputs": _collect_facts(workspace)["counts"].get("cut_inputs"),
        "control": None,
    }
    columns: dict[str, np.ndarray | None] = {"student": predictions, "control": None}
    if recipe.train.control:
        again = _student(recipe, workspace)  # with the same tokens
        _, columns["control"], facts["control"] = _train(recipe, workspace, again, data, "control", (CrossEntropy(),))
    if ranks.is_first():
        train_folder.save(student, folder / "model")
        ids = view_table.column(_views(workspace), "eval", "id")
        _write_predictions(folder / "eval.parquet", ids, columns)
        facts["controls"] = _write_controls(recipe, workspace, ids, data["train"])
        review.labels("student", predictions, recipe, workspace)
    return StageOutput(outputs=["model", "metrics.jsonl", "eval.parquet", controls.FILE], facts=facts)


def _write_controls(recipe: Recipe, workspace: Workspace, ids: list[str], train: Rows) -> dict[str, int]:
    """Their answers to the eval rows; how many train rows they learned from."""
    rows = range(min(len(train.ids), MOST_ROWS))
    texts = view_table.column(_views(workspace), "train", "simplified")[: len(rows)]
    held_out = view_table.column(_views(workspace), "eval", "simplified")
    controls.write(
        workspace, ids, label_controls.answers(texts, train.distributions(rows), held_out, recipe.task.names)
    )
    review.capped(len(rows), len(train.ids))
    return {"train_rows": len(rows)}


def _views(workspace: Workspace) -> Path:
    return workspace.folder("collect") / "views.parquet"


def _collect_facts(workspace: Workspace) -> dict[str, Any]:
    collect = workspace.manifest("collect")
    assert collect is not None
    return collect.facts


def _student(recipe: Recipe, workspace: Workspace) -> Student:
    """As it stands before training."""
    set_seed(recipe.train_seed)

    def texts(split: str) -> Iterator[str]:
        return (text for (part,) in view_table.parts(_views(workspace), split, "simplified") for text in part)

    train, held_out = (Again(lambda split=split: texts(split)) for split in ("train", "eval"))  # type: ignore[misc]
    student: Student = implementation(recipe.student)(recipe.student, recipe, Corpus(train, [], Corpus(held_out, [])))
    return student


def _train(
    recipe: Recipe,
    workspace: Workspace,
    student: Student,
    data: dict[str, Rows],
    name: str,
    terms: tuple[LossTerm, ...],
) -> tuple[Fit, np.ndarray, dict[str, Any]]:
    rows, held_out = data["train"], data["eval"]
    train, validation = map(rows.take, hold_out(range(len(rows.ids)), recipe.train.validation, recipe.train_seed))
    problem = Classification(train, validation, terms, student.tokenizer, recipe.train)
    checkpoints = train_folder.checkpoints(recipe, workspace, name)
    fit = Run(name, student.model, problem, recipe.train, recipe.train_seed, checkpoints).fit(
        workspace.folder("train") / "metrics.jsonl"
    )
    found, teacher = predict(student.model, student.tokenizer, held_out, recipe.train), held_out.distributions()
    return fit, found, {"kl": scores.kl(teacher, found), "agreement": scores.same_top(teacher, found)}


def _rows(workspace: Workspace, student: Student, split: str) -> Rows:
    """In files, whatever order the shards have, in that of the views."""
    log_prior = _collect_facts(workspace)["log_prior"]
    folder, number = workspace.folder("train"), dict[str, int]()
    ids, teacher = Spool(folder, np.int32), Spool(folder, np.float32)
    for name, tokens in student.encode(view_table.parts(_views(workspace), split, "id", "simplified")):
        number[name] = len(number)
        ids.append(tokens)
    places = np.full(len(number), -1)
    for part in label_shards.read_each(workspace, "full", split):
        for name, row in zip(part.ids, soft_labels.calibrate(part.log_probs, log_prior), strict=True):
            if name not in number:  # it was not measured
                continue
            places[number[name]] = len(teacher)
            teacher.append(row)
    if missing := next((name for name, place in number.items() if places[place] < 0), None):
        raise UpstreamError(f"row {missing} has no soft label", where=str(folder), next="distillctl collect RECIPE")
    return Rows(ids, Picked(teacher, places))


def _write_predictions(path: Path, ids: list[str], columns: dict[str, np.ndarray | None]) -> None:
    kind = pa.list_(pa.float32())
    arrays = {
        name: pa.nulls(len(ids), kind) if values is None else pa.array(list(values), kind)
        for name, values in columns.items()
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table({"id": ids, **arrays}), temporary)
