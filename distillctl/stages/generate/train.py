"""train: the student that writes, on the simplified context; and, if asked, a control on the teacher's text alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl import ranks
from distillctl.data import responses as response_texts
from distillctl.data import view_table
from distillctl.data.view_table import ViewTable
from distillctl.losses.heads import check_head
from distillctl.metrics import text as text_metrics
from distillctl.recipe import CrossEntropy, LossTerm, Recipe, implementation
from distillctl.soft_labels import responses as response_store
from distillctl.soft_labels.responses import Profile, Responses
from distillctl.students.student import Corpus, Student
from distillctl.training import folder as train_folder
from distillctl.training.generation import Generation, Scores, answers, greedy_config, model_inputs, score
from distillctl.training.loop import Fit, Run, hold_out
from distillctl.training.response_rows import ResponseRows, check_terms, end_token, rows
from distillctl.workspace import Outcome, Workspace, replacing


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Train, measure and answer the eval rows, save the best weights."""
    folder = train_folder.prepare(recipe, workspace)
    collected = _Collected.read(recipe, workspace)
    done = _train(recipe, workspace, collected, "student", recipe.train.loss)
    student = done.student
    control = _train(recipe, workspace, collected, "control", (CrossEntropy(),)) if recipe.train.control else None
    if ranks.is_first():
        student.model.generation_config = greedy_config(student.model, done.stop_ids, recipe.generate.max_new_tokens)
        train_folder.save(student, folder / "model", cut=recipe.contexts.truncate == "input")
        _write(folder, collected.views["eval"].id, done, control)
    facts = done.figures | done.fit.facts | {
        "parameters": student.model.num_parameters(),
        "max_length": student.max_length,
        "control": control.figures if control else None,
        "vocabulary": student.vocabulary_facts,
        "stop_ids": done.stop_ids,
        "encoder_decoder": student.is_encoder_decoder,
        "shared_tokenizer": collected.shares_tokenizer(student),
    }  # fmt: skip
    return Outcome(outputs=["model", "metrics.jsonl", "eval.parquet"], facts=facts)


@dataclass(frozen=True)
class _Collected:
    """What collect left: views and the teacher's responses by split, and its facts."""

    views: dict[str, ViewTable]
    responses: dict[str, Responses]
    profile: Profile
    facts: dict[str, Any]

    @classmethod
    def read(cls, recipe: Recipe, workspace: Workspace) -> _Collected:
        collect = workspace.manifest("collect")
        assert collect is not None
        path = workspace.folder("collect") / "views.parquet"
        profile: Profile = implementation(recipe.generate.soft_labels)(recipe.generate.soft_labels)
        return cls(
            {split: view_table.read(path, split) for split in ("train", "eval")},
            {split: response_store.read(workspace, "full", split, profile) for split in ("train", "eval")},
            profile,
            collect.facts,
        )

    def corpus(self, split: str = "train") -> Corpus:
        said = self.responses[split]
        return Corpus(
            [*self.views[split].simplified, *said.text],
            [list(map(int, ids)) for ids in said.token_ids],
            self.corpus("eval") if split == "train" else None,
            self.facts["teacher_tokenizer"],
        )

    def shares_tokenizer(self, student: Student) -> bool:
        return bool(student.vocabulary_digest == self.facts["teacher_tokenizer"])


@dataclass(frozen=True)
class _Trained:
    """A student with its best weights, and what it made of the eval rows."""

    student: Student
    fit: Fit
    stop_ids: list[int]
    scores: Scores
    ids: list[list[int]]
    texts: list[str]
    figures: dict[str, Any]


def _train(
    recipe: Recipe, workspace: Workspace, collected: _Collected, name: str, terms: tuple[LossTerm, ...]
) -> _Trained:
    set_seed(recipe.seed)
    student: Student = implementation(recipe.student)(recipe.student, recipe, collected.corpus())
    check_terms(terms, shared_tokenizer=collected.shares_tokenizer(student))
    every, held_out = (_rows(recipe, collected, student, split) for split in ("train", "eval"))
    check_head(student.model, model_inputs(student.model, every, [0, len(every.views) - 1])[0])
    train, validation = map(every.take, hold_out(collected.responses["train"].id, recipe.train.validation, recipe.seed))
    run = Run(
        name, student.model, Generation(train, validation, terms, recipe.train), recipe.train, recipe.seed,
        train_folder.checkpoints(recipe, workspace, name),
    )  # fmt: skip
    fit = run.fit(workspace.folder("train") / "metrics.jsonl")
    scores = score(student.model, held_out, recipe.train)
    stop_ids = _stop_ids(collected, student)
    limit = recipe.generate.max_new_tokens
    ids = answers(student, held_out.views, stop_ids, limit, recipe.train.batch_tokens)
    decoded = student.tokenizer.batch_decode(ids, skip_special_tokens=True)
    texts = [response_texts.clean(text, recipe.generate.stop) for text in decoded]
    metrics = text_metrics.corpus(
        recipe.generate.metrics, texts, collected.views["eval"].reference, collected.responses["eval"].text,
        recipe.generate.format,
    )  # fmt: skip
    figures = {"kl": None, **scores.figures, "metrics": metrics}
    return _Trained(student, fit, stop_ids, scores, ids, texts, figures)


def _rows(recipe: Recipe, collected: _Collected, student: Student, split: str) -> ResponseRows:
    return rows(
        student,
        collected.views[split],
        collected.responses[split],
        collected.profile,
        shared_tokenizer=collected.shares_tokenizer(student),
        cut=recipe.contexts.truncate == "input",
    )


def _stop_ids(collected: _Collected, student: Student) -> list[int]:
    """Of a tokenizer of its own, the end token: what it learnt from are texts that were cut before any stop string."""
    if not collected.shares_tokenizer(student):
        return [end_token(student)]
    stop, remap = np.array(collected.facts["stop_ids"]), student.remap
    kept = stop if remap is None else remap[stop]
    return sorted(int(token) for token in kept if token >= 0)


def _write(folder: Path, ids: list[str], done: _Trained, control: _Trained | None) -> None:
    """eval.parquet; a KL that is not known and a control that was not trained are null."""
    stop, scores = set(done.stop_ids), done.scores
    columns = {
        "student": pa.array(done.texts),
        "student_ids": pa.array(done.ids, pa.list_(pa.int32())),
        "student_cut": pa.array([not row or row[-1] not in stop for row in done.ids]),
        "kl": pa.nulls(len(ids), pa.float32()) if scores.kl is None else pa.array(scores.kl, pa.float32()),
        "nll": pa.array(scores.nll, pa.float32()),
        "same_top": pa.array(scores.same_top, pa.float32()),
        "control": pa.array(control.texts) if control else pa.nulls(len(ids), pa.string()),
    }
    with replacing(folder / "eval.parquet") as temporary:
        pq.write_table(pa.table({"id": ids, **columns}), temporary)
