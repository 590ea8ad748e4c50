"""Render and tokenize one context's views of every row, and keep them on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console
from distillctl.data import view_table
from distillctl.data.answer_place import AnswerPlace
from distillctl.data.disk_rows import DiskRows, shared_start
from distillctl.data.rows import Dataset, Example
from distillctl.data.views import CEILING, FLOOR, MESSAGE, Renderer
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import Counts, PlaceFacts, TeacherFacts, ViewedFacts, ViewTokens
from distillctl.teachers.fitting import Fitting, StudentLength
from distillctl.teachers.worker_pool import AnswerRequest, Answers, SharedPrefix, TeacherReader, View, Views

_END = -1
"""Separates several answers in one array; no token has this id."""
GROUP_ROWS = 1024
"""Rows of views.parquet in memory at a time."""


class Arm:
    """One context's views of every row: their texts, and token ids for the splits that are scored."""

    def __init__(self, name: str, folder: Path, place: AnswerPlace, scored: tuple[str, ...]) -> None:
        """Prepare an arm without rows. scored: the splits whose views the teacher reads."""
        self.name, self.place, self.scored = name, place, scored
        self._folder = folder
        self._texts: dict[str, DiskRows] = {}
        self._read: dict[str, DiskRows] = {}
        self._ids: dict[str, DiskRows] = {}
        self._answers: dict[str, DiskRows] = {}
        self._shortest: View | None = None
        self._longest: View | None = None
        self.merged_rows = 0
        """Number of views whose last token is part of the answer's first token."""
        self.stripped_rows = 0
        """Number of views whose final newline the teacher does not read."""

    def append(self, split: str, view: View) -> None:
        """Add the next row of a split."""
        self._append(self._texts, split, np.frombuffer(view.text.encode(), np.uint8))
        if split not in self.scored:
            return
        self.stripped_rows += view.read != view.text
        flat = [token for answer in view.answers for token in (*answer, _END)]
        self._append(self._answers, split, np.asarray(flat, np.int32))
        if view.ids is None:
            self._append(self._read, split, np.frombuffer(view.read.encode(), np.uint8))
            return
        self._append(self._ids, split, np.asarray(view.ids, np.int32))
        self.merged_rows += view.merged > 0
        if self._shortest is None or len(view.ids) < len(self._shortest.ids or ()):
            self._shortest = view
        if self._longest is None or len(view.ids) > len(self._longest.ids or ()):
            self._longest = view

    def _append(self, rows: dict[str, DiskRows], split: str, row: np.ndarray) -> None:
        if split not in rows:
            rows[split] = DiskRows(self._folder, row.dtype.type)
        rows[split].append(row)

    @property
    def tokenized(self) -> bool:
        """Tell whether views are token ids; otherwise a server tokenizes them."""
        return bool(self._ids)

    def text(self, split: str, row: int) -> str:
        """Return the text of a row's view."""
        return self._texts[split][row].tobytes().decode()

    def read(self, split: str, row: int) -> str:
        """Return the text that a served teacher reads before its answer."""
        return self._read[split][row].tobytes().decode()

    def answers(self, split: str, row: int) -> Answers:
        """Return the token ids of the answers to score after a row."""
        flat = self._answers[split][row].tolist()
        ends = [place for place, token in enumerate(flat) if token == _END]
        return tuple(tuple(flat[start:end]) for start, end in zip([0, *(e + 1 for e in ends)], ends, strict=False))

    def seen(self, split: str, row: int) -> list[Any]:
        """Return everything a row's results depend on: its token ids (or text, for a server) and its answers' ids."""
        view = self._ids[split][row].tolist() if self._ids else self.read(split, row)
        return [view, self._answers[split][row].tolist()]

    def lengths(self, split: str) -> np.ndarray:
        """Return the length of each view, int [N]: in tokens, or in bytes if a server tokenizes."""
        return (self._ids or self._read)[split].lengths

    @property
    def shared(self) -> int:
        """Return the length of the token prefix that all views share, which leaves every view at least one own
        token."""
        if self._shortest is None:
            return 0
        return max(0, min(_shared(list(self._ids.values())), len(self._shortest.ids or ()) - 1))

    @property
    def prefix(self) -> SharedPrefix:
        """Return the tokens with which all views begin."""
        if self._shortest is None or self._longest is None:
            return SharedPrefix(self.name, 0, place=self.place)
        ends = self._shortest, self._longest
        shortest, longest = (view.ids or [] for view in ends)
        return SharedPrefix(self.name, self.shared, shortest, longest, (ends[0].answers, ends[1].answers), self.place)

    def views(self, split: str, rows: Iterable[int]) -> Views:
        """Return some rows' views, for a task."""
        prefix = self.prefix
        if not self._ids:
            return Views(prefix, texts=[self.read(split, row) for row in rows])
        rows = list(rows)
        return Views(
            prefix,
            ids=[self._ids[split][row][prefix.shared :].tolist() for row in rows],
            answers=[self.answers(split, row) for row in rows],
        )

    @property
    def shared_text(self) -> str:
        """Return the text with which all eval rows' views begin."""
        texts = self._texts["eval"]
        return texts[0][: texts.shared].tobytes().decode(errors="ignore")  # may end within a character


def _shared(rows: list[DiskRows]) -> int:
    first = rows[0][0]
    return min(shared for other in rows for shared in (other.shared, shared_start(first, other[0])))


def arms(
    reader: TeacherReader,
    dataset: Dataset,
    contexts: dict[str, Renderer],
    request: Callable[[str, str, Example], AnswerRequest],
    folder: Path,
    *,
    scored: Callable[[str], tuple[str, ...]],
    student: StudentLength | None,
    cut: bool,
) -> tuple[list[Arm], Dataset]:
    """Render all rows under every context. Return the arms, the ceiling first, and the rows with any cut inputs.

    request: (arm, split, row) → the answers to score or generate. folder: keeps the views. scored: context → the
    splits whose views the teacher reads. student: measures a
    simplified view. cut: whether inputs that are too long may be cut; otherwise they raise DataError.
    """
    first = dataset.eval[0]
    by_name = {
        name: Arm(name, folder, reader.place(renderer, first, request(name, "eval", first).prefix), scored(name))
        for name, renderer in contexts.items()
    }
    fitting = Fitting(reader, contexts, request, student, folder, scored=scored, cut=cut)
    for split, examples in dataset.splits.items():
        for example in examples:
            for name, view in fitting.views(split, example).items():
                by_name[name].append(split, view)
    dataset = fitting.dataset(dataset)
    _notes(contexts, by_name)
    return list(by_name.values()), dataset


def _notes(contexts: dict[str, Renderer], arms: dict[str, Arm]) -> None:
    """Tell the user if the teacher reads a view differently from its text."""
    for name, renderer in contexts.items():
        arm = arms[name]
        if arm.stripped_rows:
            console.note(
                f"{renderer.where}: the teacher does not read the final newline of the template "
                "(final_newline: keep would leave it)"
            )
        if arm.merged_rows:
            console.note(
                f"{renderer.where}: in {arm.merged_rows:,} rows the view's last token is part of the answer's first "
                "one; both are scored together, as the teacher would write them"
            )


def write_views(
    folder: Path, dataset: Dataset, arms: Sequence[Arm], kept: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write collect/views.parquet. kept: split → bool [N], the rows to write; by default all."""
    ceiling, floor = (next(arm for arm in arms if arm.name == name) for name in (CEILING, FLOOR))

    def parts() -> Iterator[tuple[str, view_table.ViewTable]]:
        for split, examples in dataset.splits.items():
            for start in range(0, len(examples), GROUP_ROWS):
                part = list(enumerate(examples[start : start + GROUP_ROWS], start))
                part = [(place, row) for place, row in part if kept is None or kept[split][place]]
                places, rows = [place for place, _ in part], [row for _, row in part]
                yield (
                    split,
                    view_table.ViewTable(
                        [e.id for e in rows],
                        [e.input for e in rows],
                        [e.reference for e in rows],
                        [ceiling.text(split, place) for place in places],
                        [floor.text(split, place) for place in places],
                    ),
                )

    view_table.write(folder / "views.parquet", parts())


def _tokens(reader: TeacherReader, arm: Arm) -> np.ndarray:
    """Return the tokens of each eval row's view, int [N]."""
    lengths = arm.lengths("eval")
    if arm.tokenized:
        return lengths
    return np.array([reader.tokens(arm.text("eval", row)) for row in range(len(lengths))])


def collect_facts(
    recipe: Recipe, reader: TeacherReader, dataset: Dataset, arms: Sequence[Arm], fingerprint: str
) -> ViewedFacts:
    """Return the facts about data, contexts and teacher for collect's manifest."""
    ceiling, floor = (next(arm for arm in arms if arm.name == name) for name in (CEILING, FLOOR))
    teacher, student = (int(np.median(_tokens(reader, arm))) for arm in (ceiling, floor))
    return ViewedFacts(
        counts=Counts(**dataset.counts, cut_inputs=dataset.cut_inputs),
        context_tokens=ViewTokens(teacher=teacher, student=student),
        shared_tokens=ceiling.shared or reader.tokens(ceiling.shared_text),
        answer_place={arm.name: PlaceFacts(**asdict(arm.place)) for arm in arms},
        context_text=ceiling.shared_text.replace(MESSAGE, ""),
        teacher=TeacherFacts(reference=recipe.teacher.model, **reader.facts().given, fingerprint=fingerprint),
    )
