"""Workers whose teacher runs in this process: one kind scores labels, the other generates texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distillctl.data.responses import Response, clean
from distillctl.data.views import CEILING
from distillctl.models.model_source import ModelSource
from distillctl.recipe import Generate, HuggingFaceTeacher, Sampling, Task, implementation
from distillctl.teachers import huggingface, reading
from distillctl.teachers.generation import Generated, generators
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.label_scoring import LabelScores
from distillctl.teachers.reading import LocalReader
from distillctl.teachers.response_scoring import Use, context_kl
from distillctl.teachers.shared_context import SharedContext
from distillctl.teachers.worker_pool import ContextComparison, ShardTask, Views


@dataclass(frozen=True)
class Local:
    """The `worker_pool.WorkerSpec` of these workers."""

    spec: HuggingFaceTeacher
    source: ModelSource
    task: Task

    def reader(self) -> LocalReader:
        """Return the teacher without its weights."""
        return reading.read(self.spec, self.source)

    def worker(self) -> LabelScoringWorker | GenerationWorker:
        """Load the teacher."""
        teacher = huggingface.load(self.spec, self.source)
        return GenerationWorker(teacher, self.task) if isinstance(self.task, Generate) else LabelScoringWorker(teacher)


class LabelScoringWorker:
    """Score the labels after every view."""

    def __init__(self, teacher: Teacher) -> None:
        self.reader = teacher
        self._contexts: dict[str, SharedContext | None] = {}

    def label(self, task: ShardTask) -> LabelScores:
        """Return raw log-probabilities of the labels for each row."""
        prefix = task.views.prefix
        if prefix.arm not in self._contexts:
            ends = prefix.shortest, prefix.longest
            self._contexts[prefix.arm] = self.reader.prepare(ends, prefix.answers, prefix.shared)
        context = self._contexts[prefix.arm]
        scores = self.reader.score(_suffixes(task.views, context), task.views.answers, context)
        assert scores.next_ids is not None
        return replace(
            scores, next_tokens=[self.reader.tokenizer.decode([token]) for token in scores.next_ids.tolist()]
        )


class GenerationWorker:
    """Generate a text for every view, and measure how much each token of the ceiling's texts needs the full context."""

    def __init__(self, teacher: Teacher, task: Generate) -> None:
        self.reader = teacher
        self._task = task
        self._stop_ids = teacher.stop_ids(task.stop)
        self._codecs = {split: implementation(spec := task.kept(split))(spec) for split in ("train", "eval", "probe")}
        self._contexts: dict[str, SharedContext | None] = {}

    def label(self, task: ShardTask) -> list[tuple[str, int, Response]]:
        """Return (row id, sample, response) for the rows of a shard."""
        generated = self._generate(task)
        needed = [None] * len(generated) if task.compared is None else self._context_kl(task.views, task.compared)
        return [
            (row, sample, self._response(response, kl))
            for row, several, kl in zip(task.rows, generated, needed, strict=True)
            for sample, response in enumerate(several)
        ]

    def _generate(self, task: ShardTask) -> list[list[Generated]]:
        suffixes, context = self._suffixes(task.views)
        codec = self._codecs[task.split]
        keep = codec.keep if task.arm == CEILING and codec.fields else None
        if task.given is not None:
            labels: list[dict[str, Any]] = [{} for _ in task.given]
            if keep is not None:
                self.reader.score_responses(
                    suffixes,
                    task.given,
                    lambda i, rows: labels[i].update(keep(rows, generators(task.seeds[i], 0)[1])),
                    context,
                )
            return [
                [Generated(ids, ids[-1] not in self._stop_ids, kept)]
                for ids, kept in zip(task.given, labels, strict=True)
            ]
        responses = self._task.responses
        return self.reader.answer(
            suffixes,
            context,
            stop=self._stop_ids,
            max_new_tokens=self._task.max_new_tokens,
            sampling=responses if task.split == "train" and isinstance(responses, Sampling) else None,
            seeds=task.seeds,
            keep=keep,
        )

    def _context_kl(self, simplified: Views, ceiling: ContextComparison) -> list[np.ndarray]:
        def scored(views: Views, places: Sequence[int], use: Use) -> None:
            suffixes, context = self._suffixes(views)
            self.reader.score_responses(
                [suffixes[place] for place in places], [ceiling.token_ids[place] for place in places], use, context
            )

        return context_kl(
            lambda places, use: scored(ceiling.views, places, use),
            lambda places, use: scored(simplified, places, use),
            ceiling.token_ids,
            self.reader.vocabulary,
        )

    def _suffixes(self, views: Views) -> tuple[list[list[int]], SharedContext | None]:
        """Return the rows' tokens after the shared context, and the context, which is computed on first use."""
        prefix = views.prefix
        if prefix.arm not in self._contexts:
            ends = prefix.shortest, prefix.longest
            self._contexts[prefix.arm] = self.reader.prepare_to_answer(ends, prefix.shared, self._task.max_new_tokens)
        context = self._contexts[prefix.arm]
        return _suffixes(views, context), context

    def _response(self, generated: Generated, kl: np.ndarray | None) -> Response:
        text = self.reader.tokenizer.decode(generated.token_ids, skip_special_tokens=True)
        return Response(generated.token_ids, clean(text, self._task.stop), generated.cut, generated.labels, kl)


def _suffixes(views: Views, context: SharedContext | None) -> list[list[int]]:
    shared = [] if context else views.prefix.shortest[: views.prefix.shared]
    return [shared + ids for ids in views.ids]
