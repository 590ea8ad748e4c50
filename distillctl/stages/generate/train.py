"""train: the student that writes, on the simplified context; and, if asked, a control on the teacher's text alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl import cautions, ranks
from distillctl.controls import MOST_ROWS, review
from distillctl.controls import table as controls
from distillctl.controls import texts as text_controls
from distillctl.data import responses as response_texts
from distillctl.data import view_table
from distillctl.losses.heads import check_head
from distillctl.metrics import context_decided
from distillctl.metrics import text as text_metrics
from distillctl.recipe import CrossEntropy, LossTerm, Recipe, Text, implementation
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing
from distillctl.soft_labels import response_shards as response_store
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.students.student import Again, Corpus, Student
from distillctl.training import train_dir as train_folder
from distillctl.training.generation import Generation, Scores, answers, greedy_config, model_inputs, score
from distillctl.training.loop import Fit, Run, hold_out
from distillctl.training.response_rows import ResponseRows, check_terms, end_token, kept, rows

LEAST_POSITIONS = 2048
"""Tokens of view and response that a decoder takes where the model allows it, though the data's rows are shorter."""


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Train, measure and answer the eval rows, save the best weights."""
    folder = train_folder.prepare(recipe, workspace)
    collected = _Collected.of(recipe, workspace)
    student = collected.student()
    shares_tokenizer = collected.shares_tokenizer(student)
    check_terms(recipe.train.loss, shared_tokenizer=shares_tokenizer)
    data = {split: collected.rows(student, split) for split in ("train", "eval")}
    cut_responses = {split: part.cut for split, part in data.items()}
    if any(cut_responses.values()):
        cautions.add(
            "responses-cut-for-student",
            f"The ends of {cut_responses['train']:,} train and {cut_responses['eval']:,} eval responses were cut, "
            f"because view and response do not fit into the {student.max_length:,} tokens that the student takes.",
        )
    student = _within_reach(recipe, student, data)
    done = _train(collected, student, data, "student", recipe.train.loss)
    control, learned_from = None, 0
    if recipe.train.control:  # with the same tokens
        control = _train(collected, collected.student(), data, "control", (CrossEntropy(),))
    if ranks.is_first():
        student.model.generation_config = greedy_config(student.model, done.stop_ids, recipe.generate.max_new_tokens)
        train_folder.save(student, folder / "model")
        ids = view_table.column(collected.views, "eval", "id")
        _write(folder, ids, done, control)
        learned_from = _write_controls(collected, ids)
        review.texts("student", done.texts, recipe, workspace)
    facts = done.figures | done.scores.kl_facts | done.fit.facts | {
        "parameters": student.model.num_parameters(),
        "max_length": student.max_length,
        "cut_inputs": collected.facts["counts"].get("cut_inputs"),
        "cut_responses": cut_responses,
        "control": control.figures if control else None,
        "vocabulary": student.vocabulary_facts,
        "stop_ids": done.stop_ids,
        "encoder_decoder": student.is_encoder_decoder,
        "shared_tokenizer": shares_tokenizer,
        "controls": {"train_rows": learned_from},
        "context_decided": context_decided.agreement(done.scores.agreements, response_store.context_kl(workspace))
        if shares_tokenizer else None,
    }  # fmt: skip
    return StageOutput(outputs=["model", "metrics.jsonl", "eval.parquet", controls.FILE], facts=facts)


@dataclass(frozen=True)
class _Collected:
    """What collect left, read a part at a time: views and the teacher's responses by split, and its facts."""

    recipe: Recipe
    workspace: Workspace
    facts: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, workspace: Workspace) -> _Collected:
        collect = workspace.manifest("collect")
        assert collect is not None
        return cls(recipe, workspace, collect.facts)

    @property
    def views(self) -> Path:
        return self.workspace.folder("collect") / "views.parquet"

    def student(self) -> Student:
        """As it stands before training."""
        set_seed(self.recipe.train_seed)
        spec = self.recipe.student
        student: Student = implementation(spec)(spec, self.recipe, self._corpus("train", self._corpus("eval")))
        return student

    def rows(self, student: Student, split: str) -> ResponseRows:
        profile = kept(self.recipe, split, shared_tokenizer=self.shares_tokenizer(student))
        return rows(
            student,
            view_table.parts(self.views, split, "id", "simplified"),
            response_store.read_parts(self.workspace, "full", split, profile),
            profile,
            self.workspace.folder("train"),
            shared_tokenizer=self.shares_tokenizer(student),
            cut=self.recipe.contexts.truncate == "input",
        )

    def responses(self, split: str) -> Iterator[Responses]:
        """Without what was kept of the distributions."""
        return response_store.read_parts(self.workspace, "full", split, TextLabels(Text()))

    def _corpus(self, split: str, held_out: Corpus | None = None) -> Corpus:
        def texts() -> Iterator[str]:
            for (part,) in view_table.parts(self.views, split, "simplified"):
                yield from part
            for said in self.responses(split):
                yield from said.text

        def token_ids() -> Iterator[list[int]]:
            return (ids.tolist() for said in self.responses(split) for ids in said.token_ids)

        return Corpus(Again(texts), Again(token_ids), held_out, self.facts["teacher_tokenizer"])

    def shares_tokenizer(self, student: Student) -> bool:
        return bool(student.vocabulary_digest == self.facts["teacher_tokenizer"])


@dataclass(frozen=True)
class _Trained:
    """What came of a run: the student has its best weights; and what it made of the eval rows."""

    fit: Fit
    stop_ids: list[int]
    scores: Scores
    ids: list[list[int]]
    texts: list[str]
    figures: dict[str, Any]


def _within_reach(recipe: Recipe, student: Student, data: dict[str, ResponseRows]) -> Student:
    """A decoder takes no more tokens than a recipe of such rows reaches, twice over, and `LEAST_POSITIONS`: its graph
    stores rotary tables that long. A length that the recipe names stays."""
    if student.is_encoder_decoder or recipe.student.max_length is not None:
        return student
    longest = max(int(rows.lengths.max(initial=0)) for rows in data.values())
    return replace(student, max_length=min(student.max_length, max(LEAST_POSITIONS, 2 * longest)))


def _train(
    collected: _Collected, student: Student, data: dict[str, ResponseRows], name: str, terms: tuple[LossTerm, ...]
) -> _Trained:
    recipe, workspace = collected.recipe, collected.workspace
    every, held_out = data["train"], data["eval"]
    check_head(student.model, model_inputs(student.model, every, [0, len(every.views) - 1])[0])
    train, validation = map(every.take, hold_out(every.examples, recipe.train.validation, recipe.train_seed))
    run = Run(
        name, student.model, Generation(train, validation, terms, recipe.train), recipe.train, recipe.train_seed,
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
        recipe.generate.metrics,
        texts,
        view_table.column(collected.views, "eval", "reference"),
        response_store.read(workspace, "full", "eval", TextLabels(Text())).text,
        recipe.generate.format,
    )
    figures = {"kl": None, **scores.figures, "metrics": metrics}
    return _Trained(fit, stop_ids, scores, ids, texts, figures)


def _write_controls(collected: _Collected, ids: list[str]) -> int:
    """Their answers to the eval rows; how many train rows they learned from."""
    first: dict[str, str] = {}  # of several responses to a row
    for part in collected.responses("train"):
        for row, answer in zip(part.id, part.text, strict=True):
            first.setdefault(row, answer)
        if len(first) >= MOST_ROWS:
            break
    train = {
        row: view
        for names, views in view_table.parts(collected.views, "train", "id", "simplified")
        for row, view in zip(names, views, strict=True)
        if row in first
    }
    held_out = view_table.column(collected.views, "eval", "simplified")
    said = [first[row] for row in train]
    controls.write(collected.workspace, ids, text_controls.answers(list(train.values()), said, held_out))
    review.capped(len(train), len(view_table.column(collected.views, "train", "id")))
    return len(train)


def _stop_ids(collected: _Collected, student: Student) -> list[int]:
    """Of a tokenizer of its own, the end token: what it learnt from are texts that were cut before any stop string."""
    if not collected.shares_tokenizer(student):
        return [end_token(student)]
    stop, remap = np.array(collected.facts["stop_ids"]), student.remap
    kept = stop if remap is None else remap[stop]
    return sorted(int(token) for token in kept if token >= 0)


def _write(folder: Path, ids: list[str], done: _Trained, control: _Trained | None) -> None:
    """eval.parquet; a KL that is not measured and a control that was not trained are null."""
    stop, scores = set(done.stop_ids), done.scores
    columns = {
        "student": pa.array(done.texts),
        "student_ids": pa.array(done.ids, pa.list_(pa.int32())),
        "student_cut": pa.array([not row or row[-1] not in stop for row in done.ids]),
        "kl": pa.array(scores.kl, pa.float32(), mask=np.isnan(scores.kl)),
        "nll": pa.array(scores.nll, pa.float32()),
        "same_top": pa.array(scores.same_top, pa.float32()),
        "control": pa.array(control.texts) if control else pa.nulls(len(ids), pa.string()),
    }
    with replacing(folder / "eval.parquet") as temporary:
        pq.write_table(pa.table({"id": ids, **columns}), temporary)
