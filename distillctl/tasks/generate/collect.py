"""The labelling of views where the response is a text: answers, and their distributions as far as they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console
from distillctl.data import field_references
from distillctl.data.disk_rows import DiskRows
from distillctl.data.responses import Response, ended
from distillctl.data.rows import Dataset, Example
from distillctl.data.views import CEILING, FLOOR
from distillctl.recipe import (
    EvalSoftLabels,
    Given,
    Greedy,
    HuggingFaceTeacher,
    Recipe,
    Sampled,
    Sampling,
    Text,
    implementation,
)
from distillctl.run_dir.workspace import digest
from distillctl.soft_labels import response_shards, shards
from distillctl.soft_labels.eval_rows import EvalLabels, rows_measured
from distillctl.soft_labels.response_shards import Responses, SoftLabelCodec
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from distillctl.students.vocabulary import vocabulary_digest
from distillctl.tasks.base import Findings
from distillctl.tasks.generate import findings
from distillctl.tasks.generate.facts import TeacherTokens
from distillctl.teachers.arms import Arm
from distillctl.teachers.worker_pool import AnswerRequest, ContextComparison, ShardTask


def request(recipe: Recipe, arm: str, split: str, example: Example) -> AnswerRequest:
    """Ask for an answer to every view; where the data give the ceiling's train rows one, ask how likely that is."""
    task = recipe.generate
    given = isinstance(task.responses, Given) and arm == CEILING and split == "train"
    words = ((example.reference or "") + "".join(task.stop[:1]),) if given else ()
    return AnswerRequest(words=words, room=task.max_new_tokens)


class GenerateCollection:
    """A `tasks.base.Collection`: the ceiling answers first, because the floor is asked about its answers.

    Of the train rows, the floor is only asked how likely these are, and only where the loss needs it.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        dataset: Dataset,
        arms: Sequence[Arm],
        reader: Any,
        fingerprint: str,
    ) -> None:
        self.recipe, self.folder, self.dataset = recipe, folder, dataset
        self.arms = {arm.name: arm for arm in arms}
        served = not isinstance(recipe.teacher, HuggingFaceTeacher)
        self.specs = {split: recipe.generate.kept(split, served=served) for split in dataset.splits}
        self.kept: dict[str, SoftLabelCodec] = {split: implementation(spec)(spec) for split, spec in self.specs.items()}
        self.bare: SoftLabelCodec = TextLabels(Text())
        self._vocabulary, self._tokenizer = reader.vocabulary, reader.tokenizer
        self._stop_ids = reader.stop_ids(recipe.generate.stop)
        self._given = self._responses_given(reader)
        self.plan: dict[tuple[str, str], list[Shard]] = {}
        self._ceiling_of: dict[str, tuple[DiskRows, np.ndarray]] = {}
        self._plan([fingerprint, self._stop_ids])
        if self.measured is not None:
            console.note(
                f"collect: KL will be measured on the first {self.measured} of {len(dataset.eval)} eval rows; for all "
                f"of them whole distributions of up to {recipe.generate.max_new_tokens} tokens would take too much room"
            )

    def _responses_given(self, reader: Any) -> DiskRows | None:
        """Return the tokens of the train rows' responses where the data give them; None where the teacher answers."""
        task = self.recipe.generate
        if not isinstance(task.responses, Given):
            return None
        responses = DiskRows(self.folder, np.int32)
        for row in range(len(self.dataset.train)):
            [ids] = self.arms[CEILING].answers("train", row)
            responses.append(ended(ids, self._stop_ids, reader.tokenizer.eos_token_id, task.max_new_tokens))
        return responses

    @cached_property
    def measured(self) -> int | None:
        """Return how many eval rows, from the first, keep whole distributions; None means none or all of them."""
        spec, rows = self.specs["eval"], len(self.dataset.eval)
        if not isinstance(spec, EvalSoftLabels) or self._vocabulary is None:
            return None
        measured = rows_measured(spec, self._vocabulary, self.recipe.generate.max_new_tokens, rows)
        return measured if measured < rows else None

    def _plan(self, teacher: list[Any]) -> None:
        """Plan the shards of every arm and split. teacher: the values that the teacher's figures depend on."""
        task, spec = self.recipe.generate, self.recipe.teacher.identity
        for arm in self.arms.values():
            for split in arm.scored:
                settings = [*teacher, spec, list(task.stop), task.max_new_tokens, arm.shared]
                if arm.name == CEILING:
                    sampling = task.responses if split == "train" else Greedy()
                    kept = self.specs[split]
                    settings += [sampling.model_dump(mode="json"), kept.model_dump(mode="json")]
                    settings.append([column.name for column in self.kept[split].fields])
                    if isinstance(sampling, Sampling) or isinstance(kept, Sampled):
                        settings.append(self.recipe.seed)
                    if split == "eval" and self.measured is not None:
                        settings.append(self.measured)
                if arm.name == FLOOR:
                    settings += [shard.key for shard in self.plan[CEILING, split]]
                rows = self.dataset.splits[split].ids
                self.plan[arm.name, split] = shards.plan(
                    arm.name,
                    split,
                    rows,
                    arm.lengths(split),
                    partial(arm.seen, split),
                    settings,
                    self.recipe.shard_rows,
                )

    @property
    def rounds(self) -> list[list[Shard]]:
        return [
            [shard for (arm, _), part in self.plan.items() if (arm == CEILING) is ceiling for shard in part]
            for ceiling in (True, False)
        ]

    def present(self, shard: Shard) -> bool:
        return response_shards.present(self.folder, shard)

    def request(self, shard: Shard) -> ShardTask:
        """Ask for answers; ask the floor also how much the ceiling's answers need the full context."""
        given, compared = None, None
        if self._given is not None and shard.split == "train":
            given = [self._given[place].tolist() for place in shard.places]
        if shard.arm == FLOOR and isinstance(self.recipe.teacher, HuggingFaceTeacher):  # a server does not score texts
            answers, order = self._ceiling(shard.split)
            tokens = [answers[order[place]].tolist() for place in shard.places]
            compared = ContextComparison(tokens, self.arms[CEILING].views(shard.split, shard.places))
            if shard.split == "train":  # which only the ceiling answers
                given = tokens
        return ShardTask(
            shard.arm,
            shard.split,
            shard.ids,
            self.arms[shard.arm].views(shard.split, shard.places),
            [int(digest([self.recipe.seed, shard.split, row])[:16], 16) for row in shard.ids],
            given,
            compared,
        )

    def commit(self, shard: Shard, labels: list[tuple[str, int, Response]]) -> int:
        """Store the responses. labels: row id, number of the sample and the response."""
        codec = self.kept[shard.split] if shard.arm == CEILING else self.bare
        if isinstance(codec, EvalLabels) and self.measured is not None:
            places = dict(zip(shard.ids, shard.places.tolist(), strict=True))
            labels = [
                (row, sample, response)
                if places[row] < self.measured
                else (row, sample, replace(response, labels=codec.nothing(len(response.token_ids))))
                for row, sample, response in labels
            ]
        response_shards.write(self.folder, shard, labels, codec)
        return sum(len(response.token_ids) for _, _, response in labels)

    def _ceiling(self, split: str) -> tuple[DiskRows, np.ndarray]:
        """Return the ceiling's answers to a split's rows, and the place of each row's answer; they are read once."""
        if split not in self._ceiling_of:
            self._ceiling_of[split] = self._read_ceiling(split)
        return self._ceiling_of[split]

    def _read_ceiling(self, split: str) -> tuple[DiskRows, np.ndarray]:
        answers, order = DiskRows(self.folder, np.int32), np.empty(len(self.dataset.splits[split]), np.int32)
        for shard, responses in self.read(CEILING, split, self.bare):
            order[shard.places] = len(answers) + np.arange(len(shard.places))
            for ids in responses.token_ids:
                answers.append(ids)
        return answers, order

    def read(self, arm: str, split: str, codec: SoftLabelCodec) -> Iterator[tuple[Shard, Responses]]:
        """Read a finished arm, a shard at a time."""
        return response_shards.read_each(self.folder, self.plan[arm, split], codec)

    def teacher_facts(self) -> TeacherTokens:
        return TeacherTokens(
            stop_ids=self._stop_ids,
            vocabulary=self._vocabulary,
            teacher_tokenizer=self._tokenizer and vocabulary_digest(self._tokenizer),
        )

    def findings(self) -> Findings:
        arms, facts = findings.findings(self)
        if not self.recipe.generate.fields:
            return Findings(arms, facts)
        rows = field_references.write(self.folder, self.recipe.generate, self.dataset.eval)
        return Findings(arms, facts.model_copy(update={"field_references": rows}), outputs=[field_references.FILE])
