"""train: the student, on the simplified context; and, if asked, a control on the teacher's bare answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillctl import ranks, tasks
from distillctl.data import controls_table as controls
from distillctl.data import view_table
from distillctl.models import model_source
from distillctl.recipe import CrossEntropy, LossTerm, Recipe
from distillctl.run_dir.facts import ControlRows, DataFacts, FitFacts, TrainFacts
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.students.student import Student
from distillctl.tasks.base import Trained, Training
from distillctl.training import train_dir
from distillctl.training.loop import TrainingRun, hold_out


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Train, measure on the eval rows, save the best weights."""
    folder = train_dir.prepare(recipe, workspace)
    training = tasks.of(recipe, workspace).training()
    student, rows = training.rows(training.student())
    fit, trained = _fit(recipe, workspace, training, student, rows, "student", recipe.train.loss)
    control, learned_from = None, 0
    if recipe.train.control:  # with the same tokens
        begun = training.student()
        _, control = _fit(recipe, workspace, training, begun, rows, "control", (CrossEntropy(),))
    if ranks.is_first():
        training.save(folder / "model", student, rows["train"], trained)
        ids = view_table.column(workspace.folder("collect") / "views.parquet", "eval", "id")
        training.write(folder / "eval.parquet", ids, trained, control)
        learned_from = training.controls(ids, rows["train"])
        training.review(trained)
    facts = TrainFacts(
        **trained.figures.given,
        **fit.given,
        parameters=student.model.num_parameters(),
        max_length=student.max_length,
        cut_inputs=workspace.facts("collect", DataFacts).counts.cut_inputs,
        control=control.figures if control else None,
        controls=ControlRows(train_rows=learned_from),
    )
    outputs = ["model", "metrics.jsonl", "eval.parquet", controls.FILE]
    return StageOutput(outputs, facts | training.facts(student, rows, trained))


def _fit(
    recipe: Recipe,
    workspace: Workspace,
    training: Training[Any, Any],
    student: Student,
    rows: Mapping[str, object],
    name: str,
    terms: tuple[LossTerm, ...],
) -> tuple[FitFacts, Trained]:
    """Train on part of the train rows; the others say when to stop. name: of the run, in checkpoints and metrics."""
    spec, seed = recipe.train, recipe.train_seed
    train, validation = (
        training.take(rows["train"], places)
        for places in hold_out(training.examples(rows["train"]), spec.validation, seed)
    )
    objective = training.objective(student, train, validation, terms)
    source = model_source.student(recipe)
    checkpoints = train_dir.checkpoints(recipe, workspace, name, source.fingerprint() if source else None)
    loop = TrainingRun(name, student.model, objective, spec, seed, checkpoints)
    fit = loop.fit(workspace.folder("train") / "metrics.jsonl")
    trained: Trained = training.measure(student, rows["eval"])
    return fit, trained
