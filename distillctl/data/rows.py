"""Keep examples on disk; only ids and a few bytes per row stay in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from distillctl.data.disk_rows import DiskRows
from distillctl.recipe import Shot


@dataclass(frozen=True, slots=True)
class Example:
    """One row. reference: the right label's name or the right text, used to evaluate and in few-shot examples."""

    id: str
    input: str
    reference: str | None = None
    documents: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's columns that a template uses, by name: text, numbers, booleans, lists and dicts, as JSON has them."""


class DiskExamples(Sequence[Example]):
    """Examples on disk, read one at a time. The file is freed with the last object that reads it."""

    def __init__(self, rows: DiskRows, ids: Sequence[str], places: np.ndarray) -> None:
        """Wrap rows. places: int [N], each example's index in ``rows``. ids: the examples' ids."""
        self._rows, self.ids, self._places = rows, ids, places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def sizes(self) -> np.ndarray:
        """Return the bytes of each row's record, int [N]."""
        sizes: np.ndarray = self._rows.lengths[self._places]
        return sizes

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> DiskExamples: ...
    def __getitem__(self, index: int | slice) -> Example | DiskExamples:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        identifier, text, reference, documents, columns = json.loads(self._rows[self._places[index]].tobytes())
        return Example(identifier, text, reference, tuple(documents), columns)

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: Sequence[int]) -> DiskExamples:
        """Return these rows, in this order."""
        return DiskExamples(self._rows, [self.ids[row] for row in rows], self._places[np.asarray(rows, np.int64)])


class ExampleWriter:
    """Write examples to disk one by one."""

    def __init__(self, folder: Path) -> None:
        """Create the file in ``folder``."""
        self._rows = DiskRows(folder, np.uint8)
        self._ids: list[str] = []

    def append(self, example: Example) -> None:
        """Write an example to the file."""
        row = json.dumps([example.id, example.input, example.reference, example.documents, example.columns])
        self._rows.append(np.frombuffer(row.encode(), np.uint8))
        self._ids.append(example.id)

    @property
    def rows(self) -> DiskExamples:
        """Return all examples, in the order in which they were appended."""
        return DiskExamples(self._rows, self._ids, np.arange(len(self._ids)))


@dataclass(frozen=True)
class Dataset:
    """The splits, the few-shot examples of each context, and counts of what was left out."""

    train: DiskExamples
    eval: DiskExamples
    shots: dict[str, list[Shot]]
    """Context name (full, simplified, an arm) → its few-shot examples."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of each kind: ``train``, ``eval`` and ``shots`` are kept, those of `LEFT_OUT` are not. ``contradictory``
    counts inputs with several references, of which the first is kept."""
    probes: DiskExamples | None = None
    """The inputs that are answered for the report only (`TaskSection.unscored_inputs`)."""
    cut_inputs: dict[str, int] = field(default_factory=dict)
    """Split → number of rows whose input was cut because a view was too long."""

    @property
    def splits(self) -> dict[str, DiskExamples]:
        """Return split → its examples."""
        return {"train": self.train, "eval": self.eval} | ({"probe": self.probes} if self.probes else {})


LEFT_OUT = {
    "duplicates": "repeated",
    "overlap": "train rows that are also in eval",
    "shots_in_splits": "few-shot examples",
    "blank": "blank",
    "unreferenced": "without a reference",
    "excluded": "by data.exclude",
}
"""Reason why rows are left out → its description after their count."""


def left_out(counts: Mapping[str, int]) -> str:
    """Describe which rows were left out and why. counts: those of a `Dataset`; earlier versions counted fewer kinds."""
    always = ("duplicates", "overlap")
    rows = ", ".join(f"{counts[kind]:,} {why}" for kind, why in LEFT_OUT.items() if kind in always or counts.get(kind))
    doubtful = counts.get("contradictory")
    doubt = f"; inputs whose references contradict each other: {doubtful:,} (the first is kept)" if doubtful else ""
    return f"left out: {rows}{doubt}"
