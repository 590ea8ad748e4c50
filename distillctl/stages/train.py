"""train: the student, on the simplified context; and, if asked, a control on the teacher's hard labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import set_seed

from distillctl import references
from distillctl.data import view_table
from distillctl.metrics import scores
from distillctl.recipe import CrossEntropy, LossTerm, Recipe, implementation
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels import store
from distillctl.students.student import Student
from distillctl.training.checkpoints import Checkpoints
from distillctl.training.loop import Fit, Rows, Run, keep_lines
from distillctl.workspace import Outcome, Workspace, digest, replacing, replacing_folder, writable


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Train, measure on the eval rows, save the best weights."""
    folder = workspace.folder("train")
    workspace.retract("train")
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not recipe.train.control:  # an earlier recipe's
        keep_lines(folder / "metrics.jsonl", "control", 0)
        Checkpoints(folder / "checkpoints", "control", "none")
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    student, fit, predictions, facts = _train(recipe, workspace, "student", recipe.train.loss)
    facts |= {
        "steps": fit.steps,
        "best_step": fit.best_step,
        "resumed_from": fit.resumed_from,
        "stopped": fit.stopped,
        "tokens_per_second": fit.tokens_per_second,
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "max_length": student.max_length,
        "control": None,
    }
    columns: dict[str, np.ndarray | None] = {"student": predictions, "control": None}
    if recipe.train.control:
        _, _, columns["control"], facts["control"] = _train(recipe, workspace, "control", (CrossEntropy(),))
    _save(student, folder / "model", cut=recipe.contexts.truncate == "input")
    _write_predictions(folder / "eval.parquet", workspace, columns)
    return Outcome(outputs=["model", "metrics.jsonl", "eval.parquet"], facts=facts)


def _train(
    recipe: Recipe, workspace: Workspace, name: str, terms: tuple[LossTerm, ...]
) -> tuple[Student, Fit, np.ndarray, dict[str, object]]:
    set_seed(recipe.seed)
    student: Student = implementation(recipe.student)(recipe.student, recipe)
    collect = workspace.manifest("collect")
    assert collect is not None
    rows = {split: _rows(recipe, workspace, student, split, collect.facts["log_prior"]) for split in ("train", "eval")}
    train, validation = _hold_out(rows["train"], recipe.train.validation, recipe.seed)
    asked = recipe.model_dump(mode="json", include={"seed", "student", "train"})
    key = digest([asked, collect.fingerprint, references.student(recipe).fingerprint()])
    folder = workspace.folder("train")
    run = Run(name, student, terms, recipe.train, recipe.seed, Checkpoints(folder / "checkpoints", name, key))
    fit = run.fit(train, validation, folder / "metrics.jsonl")
    found = run.predict(rows["eval"])
    teacher = rows["eval"].teacher
    return student, fit, found, {"kl": scores.kl(teacher, found), "agreement": scores.same_top(teacher, found)}


def _rows(recipe: Recipe, workspace: Workspace, student: Student, split: str, log_prior: list[float] | None) -> Rows:
    views = view_table.read(workspace.folder("collect") / "views.parquet", split)
    labels = store.read(workspace, "full", split)
    ids = student.encode(views.simplified, views.id, cut=recipe.contexts.truncate == "input")
    return Rows(ids, soft_labels.calibrate(labels.log_probs, log_prior))


def _hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """A seeded share of the train rows, for early stopping."""
    order = np.random.default_rng(seed).permutation(len(rows.ids))
    size = max(1, round(share * len(order)))
    parts = (sorted(order[size:]), sorted(order[:size]))
    train, validation = (Rows([rows.ids[i] for i in part], rows.teacher[part]) for part in parts)
    return train, validation


def _save(student: Student, folder: Path, *, cut: bool) -> None:
    tokenizer = student.tokenizer
    tokenizer.backend_tokenizer.no_padding()
    if cut:
        tokenizer.backend_tokenizer.enable_truncation(student.max_length)
    else:
        tokenizer.backend_tokenizer.no_truncation()
    with replacing_folder(folder) as temporary:
        student.model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _write_predictions(path: Path, workspace: Workspace, columns: dict[str, np.ndarray | None]) -> None:
    ids = view_table.read(workspace.folder("collect") / "views.parquet", "eval").id
    kind = pa.list_(pa.float32())
    arrays = {
        name: pa.nulls(len(ids), kind) if values is None else pa.array(list(values), kind)
        for name, values in columns.items()
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table({"id": ids, **arrays}), temporary)
