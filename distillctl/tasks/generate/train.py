"""The training of a student whose response is a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl import cautions
from distillctl.data import controls_table, view_table
from distillctl.data import responses as response_texts
from distillctl.data.views import CEILING, FLOOR
from distillctl.errors import RecipeError
from distillctl.losses.heads import check_head
from distillctl.metrics import context_decided, doubts
from distillctl.metrics import text as text_metrics
from distillctl.recipe import LossTerm, Text, implementation
from distillctl.run_dir.workspace import replacing
from distillctl.runtimes.drafts import FILE, Drafts
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.students.student import Corpus, Reiterable, Student
from distillctl.tasks.base import BoundTask
from distillctl.tasks.generate import controls, text_checks, token_weights
from distillctl.tasks.generate.facts import GenerateDistance, TeacherTokens, WriterFacts
from distillctl.tasks.generate.objective import Generation, Scores, answers, greedy_config, model_inputs, score
from distillctl.tasks.generate.response_rows import ResponseRows, check_terms, end_token, kept, rows

LEAST_POSITIONS = 2048
"""Tokens of view and response that a decoder takes where the model allows it, though the data's rows are shorter."""
MUCH_DROPPED = 0.05
"""Share of the teacher's probability on trimmed tokens from which the user is told."""


@dataclass(frozen=True)
class GenerateTrained:
    """The student's answers to the held-out rows, and its scores under teacher forcing."""

    stop_ids: list[int]
    scores: Scores
    ids: list[list[int]]
    texts: list[str]
    figures: GenerateDistance


class GenerateTraining(BoundTask):
    """A `tasks.base.Training`: views and the teacher's responses are read a part at a time."""

    def student(self) -> Student:
        set_seed(self.recipe.train_seed)
        spec = self.recipe.student
        student: Student = implementation(spec)(spec, self.recipe, self._corpus("train", self._corpus("eval")))
        return student

    def _corpus(self, split: str, held_out: Corpus | None = None) -> Corpus:
        def texts() -> Iterator[str]:
            for (part,) in view_table.parts(self.views_path, split, "simplified"):
                yield from part
            for responses in self._responses(split):
                yield from responses.text

        def token_ids() -> Iterator[list[int]]:
            return (ids.tolist() for responses in self._responses(split) for ids in responses.token_ids)

        return Corpus(Reiterable(texts), Reiterable(token_ids), held_out, self._teacher.teacher_tokenizer)

    @property
    def _teacher(self) -> TeacherTokens:
        return self.workspace.facts("collect", TeacherTokens)

    def _responses(self, split: str) -> Iterator[Responses]:
        """Read the responses without their distributions."""
        return response_shards.read_parts(self.workspace, "full", split, TextLabels(Text()))

    def rows(self, student: Student) -> tuple[Student, dict[str, ResponseRows]]:
        """Return the rows, and the student with a maximum length that the rows need."""
        check_terms(self.recipe.train.loss, shared_tokenizer=self._shares_tokenizer(student))
        rows_of = {split: self._rows(student, split) for split in ("train", "eval")}
        if any(part.cut for part in rows_of.values()):
            cautions.add(
                "responses-cut-for-student",
                f"The ends of {rows_of['train'].cut:,} train and {rows_of['eval'].cut:,} eval responses were cut, "
                f"because view and response do not fit into the {student.max_length:,} tokens that the student takes.",
            )
        return self._shortened(student, rows_of), rows_of

    def _rows(self, student: Student, split: str) -> ResponseRows:
        shared_tokenizer = self._shares_tokenizer(student)
        codec = kept(self.recipe, split, shared_tokenizer=shared_tokenizer)
        weighed = split == "train" and self.recipe.train.weights is not None
        if weighed and not shared_tokenizer:
            raise RecipeError(
                "the weights are of the teacher's tokens, and the student has other tokens",
                where="train.weights",
                next="leave it out, or use a student with the teacher's tokenizer",
            )
        return rows(
            student,
            view_table.parts(self.views_path, split, "id", "simplified"),
            response_shards.read_parts(self.workspace, "full", split, codec),
            codec,
            self.workspace.folder("train"),
            shared_tokenizer=shared_tokenizer,
            cut=self.recipe.contexts.truncate == "input",
            needs=token_weights.needs(self.recipe, self.workspace, codec) if weighed else None,
        )

    def _shares_tokenizer(self, student: Student) -> bool:
        return bool(student.vocabulary_digest == self._teacher.teacher_tokenizer)

    def _shortened(self, student: Student, rows_of: Mapping[str, ResponseRows]) -> Student:
        """Limit a decoder to twice the longest row, and to no less than `LEAST_POSITIONS`: its graph stores rotary
        tables that long. A length that the recipe names stays."""
        if student.is_encoder_decoder or self.recipe.student.max_length is not None:
            return student
        longest = max(int(part.lengths.max(initial=0)) for part in rows_of.values())
        return replace(student, max_length=min(student.max_length, max(LEAST_POSITIONS, 2 * longest)))

    def examples(self, rows: ResponseRows) -> Iterable[Any]:
        return rows.examples

    def take(self, rows: ResponseRows, places: Sequence[int]) -> ResponseRows:
        return rows.take(places)

    def objective(
        self, student: Student, train: ResponseRows, validation: ResponseRows, terms: tuple[LossTerm, ...]
    ) -> Generation:
        check_head(student.model, model_inputs(student.model, train, [0, len(train.views) - 1])[0])
        return Generation(train, validation, terms, self.recipe.train)

    def measure(self, student: Student, held_out: ResponseRows) -> GenerateTrained:
        spec, task = self.recipe.train, self.recipe.generate
        scores = score(student.model, held_out, spec)
        stop_ids = self._stop_ids(student)
        ids = answers(student, held_out.views, stop_ids, task.max_new_tokens, spec.batch_tokens)
        decoded = student.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = [response_texts.clean(text, task.stop) for text in decoded]
        metrics = text_metrics.corpus(
            task.metrics,
            texts,
            view_table.column(self.views_path, "eval", "reference"),
            response_shards.read(self.workspace, "full", "eval", TextLabels(Text())).text,
            task.format,
        )
        figures = GenerateDistance.model_validate({"kl": None, **scores.figures, "metrics": metrics})
        return GenerateTrained(stop_ids, scores, ids, texts, figures)

    def _stop_ids(self, student: Student) -> list[int]:
        """Return the ids that end an answer.

        With a tokenizer of its own that is the student's end token alone: it learned from texts that were cut before
        any stop string.
        """
        if not self._shares_tokenizer(student):
            return [end_token(student)]
        stop, remap = np.array(self._teacher.stop_ids), student.remap
        mapped = stop if remap is None else remap[stop]
        return sorted(int(token) for token in mapped if token >= 0)

    def save(self, folder: Path, student: Student, train: ResponseRows, trained: GenerateTrained) -> None:
        limit = self.recipe.generate.max_new_tokens
        student.model.generation_config = greedy_config(student.model, trained.stop_ids, limit)
        student.save(folder)
        drafts = Drafts.learn(train.responses, trained.stop_ids)
        if drafts.usual:
            with replacing(folder / FILE) as temporary:
                temporary.write_text(drafts.dumps(), encoding="utf-8")

    def write(self, path: Path, ids: Sequence[str], trained: GenerateTrained, control: GenerateTrained | None) -> None:
        """Write texts and figures; a KL that is not measured and a control that was not trained are null."""
        stop, scores = set(trained.stop_ids), trained.scores
        columns = {
            "student": pa.array(trained.texts),
            "student_ids": pa.array(trained.ids, pa.list_(pa.int32())),
            "student_cut": pa.array([not row or row[-1] not in stop for row in trained.ids]),
            "kl": pa.array(scores.kl, pa.float32(), mask=np.isnan(scores.kl)),
            "nll": pa.array(scores.nll, pa.float32()),
            "same_top": pa.array(scores.same_top, pa.float32()),
            "control": pa.array(control.texts) if control else pa.nulls(len(ids), pa.string()),
        }
        with replacing(path) as temporary:
            pq.write_table(pa.table({"id": list(ids), **columns}), temporary)

    def controls(self, ids: Sequence[str], train: ResponseRows) -> int:
        first: dict[str, str] = {}  # of several responses to a row
        for part in self._responses("train"):
            for row, answer in zip(part.id, part.text, strict=True):
                first.setdefault(row, answer)
            if len(first) >= controls_table.MOST_ROWS:
                break
        views = {
            row: view
            for names, texts in view_table.parts(self.views_path, "train", "id", "simplified")
            for row, view in zip(names, texts, strict=True)
            if row in first
        }
        held_out = view_table.column(self.views_path, "eval", "simplified")
        responses = [first[row] for row in views]
        answers = controls.answers(list(views.values()), responses, held_out)
        controls_table.write(self.workspace, list(ids), answers)
        doubts.controls_capped(len(views), len(view_table.column(self.views_path, "train", "id")))
        return len(views)

    def review(self, trained: GenerateTrained) -> None:
        views, task = self.held_out_views(), self.recipe.generate
        answers: dict[str, list[str]] = {"student": list(trained.texts)}
        for arm, context in (("ceiling", CEILING), ("floor", FLOOR)):
            answers[arm] = response_shards.read(self.workspace, context, "eval", TextLabels(Text())).text
        answers |= controls_table.read(self.workspace, views.id, list(task.controls))
        against = (views.reference, answers["ceiling"], task.format)
        rows = {arm: text_metrics.row_scores(task.score, texts, *against) for arm, texts in answers.items()}
        doubts.review("student", answers, rows, task.controls, text_metrics.metric_name(task.score, views.reference))
        text_checks.review("student", views.input, answers["student"], answers["ceiling"])
        mass = trained.scores.kl_facts.dropped_mass
        if mass is not None and mass > MUCH_DROPPED:
            cautions.add(
                "trimmed-mass",
                f"The teacher gives {mass:.0%} of its probability to tokens that were trimmed from the student's "
                "vocabulary. The student cannot learn them, and no KL counts them. A larger student.vocabulary.merges "
                "keeps more tokens.",
            )

    def facts(self, student: Student, rows: Mapping[str, ResponseRows], trained: GenerateTrained) -> WriterFacts:
        shares_tokenizer = self._shares_tokenizer(student)
        decided = None
        if shares_tokenizer:
            context_kl = response_shards.context_kl(self.workspace)
            decided = context_decided.agreement(trained.scores.agreements, context_kl)
        return WriterFacts(
            **trained.scores.kl_facts.given,
            cut_responses={split: part.cut for split, part in rows.items()},
            vocabulary=student.vocabulary_facts,
            stop_ids=trained.stop_ids,
            encoder_decoder=student.is_encoder_decoder,
            shared_tokenizer=shares_tokenizer,
            context_decided=decided,
        )
