"""Render a row under every context, and cut its input to what teacher and student can read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from distillctl import cautions
from distillctl.data import truncation
from distillctl.data.rows import Dataset, Example, ExampleWriter
from distillctl.data.truncation import Length
from distillctl.data.views import CEILING, FLOOR, Renderer
from distillctl.teachers.worker_pool import AnswerRequest, TeacherReader, View

StudentLength = Callable[[str], Length]
"""Measures a simplified view's text in the student's tokens, with the student's limit."""


def contexts_of(split: str, contexts: Mapping[str, Renderer]) -> list[str]:
    """Return the contexts for a split. Train rows need only the full one, for labels, and the simplified one."""
    return list(contexts) if split == "eval" else [name for name in contexts if name in (CEILING, FLOOR)]


class Fitting:
    """Render rows so that every view fits.

    The end of an input that is too long is cut, by the same amount for all contexts and the student. If inputs may not
    be cut, `dataset` refuses the row.
    """

    def __init__(
        self,
        reader: TeacherReader,
        contexts: Mapping[str, Renderer],
        request: Callable[[str, str, Example], AnswerRequest],
        student: StudentLength | None,
        folder: Path,
        *,
        scored: Callable[[str], tuple[str, ...]],
        cut: bool,
    ) -> None:
        """Prepare an empty set of rows.

        request: (context, split, row) → the answers to score or generate. scored: context → the splits whose views the
        teacher reads. student: None if its tokenizer does not exist
        yet. folder: keeps cut rows.
        """
        self._reader, self._contexts, self._request, self._student, self._cut = reader, contexts, request, student, cut
        self._scored = scored
        self._rows: defaultdict[str, ExampleWriter] = defaultdict(lambda: ExampleWriter(folder))
        self._too_long: Counter[str] = Counter()
        self._limits: dict[str, str] = {}
        self._worst: tuple[Length, str] | None = None

    def views(self, split: str, example: Example) -> dict[str, View]:
        """Return context → view of one row. Cut a row that is too long, or remember it for the error."""

        def render(row: Example) -> dict[str, View]:
            return {name: self._view(name, split, row) for name in contexts_of(split, self._contexts)}

        rendered = render(example)
        lengths = self._lengths(rendered)
        if truncation.longest(lengths) is not None:
            self._remember(split, example.id, lengths)
            if self._cut:
                example, rendered = truncation.fit(example, render, self._lengths)
        if self._cut:
            self._rows[split].append(example)
        return rendered

    def dataset(self, dataset: Dataset) -> Dataset:
        """Return the rows, cut where needed. Raise DataError, naming the longest row, if rows may not be cut."""
        too_long = {split: self._too_long[split] for split in dataset.splits}
        if self._worst is None:
            return replace(dataset, cut_inputs=too_long)
        length, row = self._worst
        if not self._cut:
            raise length.error(row, self._too_long.total() - 1)
        cautions.add(
            "inputs-cut",
            "The ends of the inputs of "
            + " and ".join(
                f"{too_long[split]:,} of {len(rows):,} {split} rows" for split, rows in dataset.splits.items()
            )
            + f" were cut, because their views are too long: {' and '.join(self._limits.values())}. All contexts and "
            "the student read the shortened inputs.",
        )
        train, held_out, probes = (self._rows[split].rows for split in ("train", "eval", "probe"))
        return replace(dataset, train=train, eval=held_out, probes=probes, cut_inputs=too_long)

    def _view(self, name: str, split: str, example: Example) -> View:
        """Render one view. If the teacher does not read it, it is text only, for the student."""
        renderer = self._contexts[name]
        if split in self._scored(name):
            return self._reader.view(renderer, example, self._request(name, split, example))
        return View(self._reader.text(renderer, example))

    def _lengths(self, views: Mapping[str, View]) -> list[Length]:
        lengths = [view.length for view in views.values() if view.length is not None]
        return lengths if self._student is None else [*lengths, self._student(views[FLOOR].text)]

    def _remember(self, split: str, row: str, lengths: list[Length]) -> None:
        self._too_long[split] += 1
        self._limits |= {length.limit.who: length.limit.description for length in lengths if length.excess > 0}
        worst = truncation.longest(lengths)
        if worst is not None and (self._worst is None or worst.excess > self._worst[0].excess):
            self._worst = worst, row
