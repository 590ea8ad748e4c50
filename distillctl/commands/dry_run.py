"""Work out for --dry-run what a run would do and cost, from the recipe and the data alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distillctl import cautions, pipeline
from distillctl.commands import view_lengths
from distillctl.data import examples, responses, split_checks, views
from distillctl.data.rows import Dataset, Example
from distillctl.data.views import Renderer
from distillctl.models import model_source
from distillctl.models.preview import ModelPreview
from distillctl.recipe import Generate, Given, OpenAITeacher, Recipe, Sampling, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import size
from distillctl.students import parameters, preflight
from distillctl.teachers import engines
from distillctl.trust import recipe_access

SAMPLE = 64
"""Number of rows that are tokenized to estimate the mean length of views and given responses."""


def plan(recipe: Recipe, workspace: Workspace, stages: list[str]) -> dict[str, Any]:
    """Return rows, tokens, bytes and floating-point work of the named stages. Raise and caution as they would."""
    with cautions.collected() as doubts:
        return {**_plan(recipe, workspace, stages), "cautions": doubts}


def _plan(recipe: Recipe, workspace: Workspace, stages: list[str]) -> dict[str, Any]:
    workspace.check()
    states = [s for s in pipeline.status(recipe, workspace, stages) if s.stage in stages]
    engines.check_installed(recipe.collect)
    dataset = examples.load(recipe)
    split_checks.check_splits(recipe, dataset)
    preflight.check_student(recipe)
    responses.check_given(recipe, dataset)
    source = model_source.teacher(recipe)
    known = source.tokenizer if isinstance(source, model_source.ServedSource) else source
    preview, contexts = ModelPreview(known), views.renderers(recipe, dataset.shots)
    views.check(contexts, dataset.eval[: views.CHECKED])
    count, vocabulary = preview.tokens, preview.vocabulary
    reads = view_lengths.teacher(recipe, preview)
    takes = view_lengths.student(recipe, ModelPreview(model_source.student(recipe)))
    arms = {}
    for name, renderer in contexts.items():
        rows = sum(len(dataset.splits[split]) for split in views.scored_splits(recipe, name))
        tokens, shared = _tokens(renderer, dataset.eval[:SAMPLE], count)
        arms[name] = {"rows": rows, "tokens_per_row": round(tokens), "shared_tokens": round(shared)}
    counted = "estimated from characters" if vocabulary is None else "counted with the teacher's tokenizer.json"
    answers = _answers(recipe, dataset, arms, count, vocabulary)
    of_teacher = parameters.count(source)
    forward = answers.forward + sum(
        a["rows"] * (a["tokens_per_row"] - a["shared_tokens"]) + a["shared_tokens"] for a in arms.values()
    )
    served = _served(recipe, arms, answers) if isinstance(recipe.teacher, OpenAITeacher) else None
    train_tokens = (
        answers.train_rows * (arms["simplified"]["tokens_per_row"] + answers.train_tokens) * recipe.train.epochs
    )
    student = parameters.of_student(recipe, model_source.student(recipe))
    steps = (
        math.ceil(answers.train_rows * (1 - recipe.train.validation) / recipe.train.batch_rows) * recipe.train.epochs
    )
    split_checks.check_steps(steps)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "run_dir": str(workspace.root),
        "stages": [{"stage": s.stage, "state": s.state, "why": list(s.why)} for s in states],
        "reach": recipe_access.describe(recipe),
        "rows": dataset.counts,
        "arms": arms,
        "tokens": counted + answers.note,
        "lengths": view_lengths.check_lengths(recipe, dataset, contexts, reads, takes),
        "views": view_lengths.samples(dataset, contexts, preview),
        "collect": {
            "teacher_parameters": of_teacher,
            "forward_tokens": forward,
            "flop": None if of_teacher is None else 2 * of_teacher * forward,
            "soft_label_bytes": answers.bytes,
            "engine": recipe.collect.model_dump(mode="json"),
            **({} if served is None else {"served": served}),
        },
        "train": {
            "student_parameters": student,
            "steps": steps,
            "tokens": train_tokens,
            "flop": None if student is None else 6 * student * train_tokens * (1 + recipe.train.control),
            "checkpoint_bytes": None if student is None else 16 * student,
        },
        "graph_bytes": None if student is None else {"fp32": 4 * student, "int8": student},
    }


def _served(recipe: Recipe, arms: dict[str, Any], answers: _Answers) -> dict[str, Any]:
    """Return requests, tokens and an upper bound of their price. Every request sends its whole view.

    Labels of several tokens need further requests, which are not counted: only the tokenizer knows them.
    """
    teacher, task = recipe.teacher, recipe.task
    assert isinstance(teacher, OpenAITeacher)
    read = sum(arm["rows"] * arm["tokens_per_row"] for arm in arms.values())
    rows = sum(arm["rows"] for arm in arms.values())
    written = rows
    if isinstance(task, Generate):
        train = arms["full"]["rows"] - arms["simplified"]["rows"]
        written = answers.train_rows * answers.train_tokens + (rows - train) * task.max_new_tokens
        if isinstance(task.responses, Given):
            rows, written = rows - train, (rows - train) * task.max_new_tokens
    prices = teacher.prices
    cost = None if prices is None else (read * prices.input + written * prices.output) / 1e6
    return {"requests": rows, "tokens_read": read, "tokens_written": written, "cost": cost}


# ── answers ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Answers:
    """The answers' share of the work: tokens of forward passes, bytes of soft labels, rows and tokens to train on."""

    forward: int
    bytes: int | None
    train_rows: int
    train_tokens: int = 0
    """Tokens of each row's response."""
    note: str = ""


def _answers(
    recipe: Recipe, dataset: Dataset, arms: dict[str, Any], count: Callable[[str], float], vocabulary: int | None
) -> _Answers:
    rows = sum(arm["rows"] for arm in arms.values())
    task = recipe.task
    if not isinstance(task, Generate):
        return _Answers(0, rows * (4 * len(task.answers) + 24), len(dataset.train))
    longest, responses_count = task.max_new_tokens, len(dataset.train)
    in_train, note = longest, f"; responses by their upper bound, {longest} tokens (task.max_new_tokens)"
    if isinstance(task.responses, Sampling):
        responses_count *= task.responses.n
    if isinstance(task.responses, Given):
        given = [count(example.reference or "") + 1 for example in dataset.train[:SAMPLE]]
        in_train = min(longest, round(sum(given) / len(given)))
        note = f"; the teacher's responses by their upper bound, {longest} tokens (task.max_new_tokens)"
    full, floor = arms["full"], arms["simplified"]
    # The ceiling's answers to the floor's rows are also scored under both contexts, to measure how much each token
    # needs the full one. A server does not do that.
    again = sum(arm["tokens_per_row"] - arm["shared_tokens"] + longest for arm in (full, floor))
    again *= 0 if isinstance(recipe.teacher, OpenAITeacher) else floor["rows"]
    others = len(dataset.eval) * len(arms)
    kept, text = (size.bytes_per_token(labels, vocabulary) for labels in (task.soft_labels, Text()))
    in_ceiling = responses_count * in_train + len(dataset.eval) * longest
    return _Answers(
        forward=responses_count * in_train + others * longest + again,
        bytes=None
        if kept is None or text is None
        else round(in_ceiling * kept + (others - len(dataset.eval)) * longest * text),
        train_rows=responses_count,
        train_tokens=in_train,
        note=note,
    )


# ── tokens and weights ───────────────────────────────────────────────────────────────────────────


def _tokens(renderer: Renderer, rows: Sequence[Example], count: Callable[[str], float]) -> tuple[float, float]:
    """Return the mean tokens per view and the tokens that all views share. Chat views count their messages' text."""
    texts = [renderer.preview(row) for row in rows]
    shared = count(texts[0][: views.shared_length(texts)])
    return sum(map(count, texts)) / len(texts), shared if shared >= 16 else 0
