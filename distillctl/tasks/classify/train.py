"""The training of a student whose response is one of several labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import set_seed

from distillctl.data import controls_table, view_table
from distillctl.data.disk_rows import DiskRows, Subset
from distillctl.data.views import CEILING, FLOOR
from distillctl.errors import UpstreamError
from distillctl.metrics import doubts, scores
from distillctl.recipe import LossTerm, implementation
from distillctl.run_dir.facts import Distance, Facts, MetricFacts
from distillctl.run_dir.workspace import replacing
from distillctl.soft_labels import label_shards
from distillctl.soft_labels import labels as soft_labels
from distillctl.students.student import Corpus, Reiterable, Student
from distillctl.tasks.base import BoundTask
from distillctl.tasks.classify import controls
from distillctl.tasks.classify.facts import ClassifyCollect
from distillctl.tasks.classify.objective import Classification, LabelRows, predict


@dataclass(frozen=True)
class ClassifyTrained:
    """The student's normalised label log-probabilities for the held-out rows, float32 [N, K]."""

    log_probs: np.ndarray
    figures: Distance


class ClassifyTraining(BoundTask):
    """A `tasks.base.Training`."""

    def student(self) -> Student:
        set_seed(self.recipe.train_seed)
        spec, (train, held_out) = self.recipe.student, (Reiterable(partial(self._texts, split)) for split in SPLITS)
        corpus = Corpus(train, [], Corpus(held_out, []))
        student: Student = implementation(spec)(spec, self.recipe, corpus)
        return student

    def _texts(self, split: str) -> Iterator[str]:
        return (text for (part,) in view_table.parts(self.views_path, split, "simplified") for text in part)

    def rows(self, student: Student) -> tuple[Student, dict[str, LabelRows]]:
        return student, {split: self._rows(student, split) for split in SPLITS}

    def _rows(self, student: Student, split: str) -> LabelRows:
        """Return a split's rows in the views' order, whatever order the shards have. They are kept in files."""
        log_prior = self.workspace.facts("collect", ClassifyCollect).log_prior
        folder, number = self.workspace.folder("train"), dict[str, int]()
        ids, teacher = DiskRows(folder, np.int32), DiskRows(folder, np.float32)
        for name, tokens in student.encode(view_table.parts(self.views_path, split, "id", "simplified")):
            number[name] = len(number)
            ids.append(tokens)
        places = np.full(len(number), -1)
        for part in label_shards.read_each(self.workspace, "full", split):
            for name, row in zip(part.ids, soft_labels.calibrate(part.log_probs, log_prior), strict=True):
                if name not in number:  # it was not measured
                    continue
                places[number[name]] = len(teacher)
                teacher.append(row)
        if missing := next((name for name, place in number.items() if places[place] < 0), None):
            raise UpstreamError(f"row {missing} has no soft label", where=str(folder), next="distillctl collect RECIPE")
        return LabelRows(ids, Subset(teacher, places))

    def examples(self, rows: LabelRows) -> Iterable[int]:
        return range(len(rows.ids))

    def take(self, rows: LabelRows, places: Sequence[int]) -> LabelRows:
        return rows.take(places)

    def objective(
        self, student: Student, train: LabelRows, validation: LabelRows, terms: tuple[LossTerm, ...]
    ) -> Classification:
        return Classification(train, validation, terms, student.tokenizer, self.recipe.train)

    def measure(self, student: Student, held_out: LabelRows) -> ClassifyTrained:
        log_probs = predict(student.model, student.tokenizer, held_out, self.recipe.train)
        teacher = held_out.distributions()
        figures = Distance(kl=scores.kl(teacher, log_probs), agreement=scores.same_top(teacher, log_probs))
        return ClassifyTrained(log_probs, figures)

    def save(self, folder: Path, student: Student, train: LabelRows, trained: ClassifyTrained) -> None:
        student.save(folder)

    def write(self, path: Path, ids: Sequence[str], trained: ClassifyTrained, control: ClassifyTrained | None) -> None:
        """Write both models' log-probabilities; those of a control that was not trained are null."""
        kind = pa.list_(pa.float32())
        columns = {
            "student": pa.array(list(trained.log_probs), kind),
            "control": pa.array(list(control.log_probs), kind) if control else pa.nulls(len(ids), kind),
        }
        with replacing(path) as temporary:
            pq.write_table(pa.table({"id": list(ids), **columns}), temporary)

    def controls(self, ids: Sequence[str], train: LabelRows) -> int:
        rows = range(min(len(train.ids), controls_table.MOST_ROWS))
        texts = view_table.column(self.views_path, "train", "simplified")[: len(rows)]
        held_out = view_table.column(self.views_path, "eval", "simplified")
        answers = controls.answers(texts, train.distributions(rows), held_out, self.recipe.task.names)
        controls_table.write(self.workspace, list(ids), answers)
        doubts.controls_capped(len(rows), len(train.ids))
        return len(rows)

    def review(self, trained: ClassifyTrained) -> None:
        views, controls = self.held_out_views(), self.recipe.task.controls
        log_prior = self.workspace.facts("collect", ClassifyCollect).log_prior
        names = np.array(self.recipe.task.names)
        answers: dict[str, list[str]] = {"student": names[trained.log_probs.argmax(-1)].tolist()}
        for arm, context in (("ceiling", CEILING), ("floor", FLOOR)):
            labels = label_shards.read(self.workspace, context, "eval").log_probs
            answers[arm] = names[soft_labels.calibrate(labels, log_prior).argmax(-1)].tolist()
        answers |= controls_table.read(self.workspace, views.id, list(controls))
        rows = {
            arm: scores.label_scores(chosen, views.reference, answers["ceiling"])[0] for arm, chosen in answers.items()
        }
        doubts.review("student", answers, rows, controls, self.workspace.facts("collect", MetricFacts).metric)

    def facts(self, student: Student, rows: object, trained: ClassifyTrained) -> Facts:
        return Facts()


SPLITS = ("train", "eval")
