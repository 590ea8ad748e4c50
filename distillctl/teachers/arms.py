"""An arm: the teacher under one context. Its views are rendered and tokenized once, row by row, and lie in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillctl.data import view_table
from distillctl.data.examples import Dataset
from distillctl.data.spool import Spool, shared_start
from distillctl.data.views import CEILING, FLOOR, MESSAGE, Renderer
from distillctl.engines.tasks import Opening, Reader, View, Views
from distillctl.recipe import Recipe

GROUP_ROWS = 1024
"""Rows of views.parquet that are in memory at a time."""


class Arm:
    """One context over the splits: the text of every row, and the token ids of those it is scored on."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._texts: dict[str, Spool] = {}
        self._ids: dict[str, Spool] = {}
        self._shortest: list[int] = []
        self._longest: list[int] = []

    def append(self, split: str, view: View) -> None:
        """The split's next row."""
        if split not in self._texts:
            self._texts[split] = Spool(self._folder, np.uint8)
        self._texts[split].append(np.frombuffer(view.text.encode(), np.uint8))
        if view.ids is None or split not in self.scored:
            return
        if split not in self._ids:
            self._ids[split] = Spool(self._folder, np.int32)
        self._ids[split].append(view.ids)
        if not self._shortest or len(view.ids) < len(self._shortest):
            self._shortest = view.ids
        if len(view.ids) > len(self._longest):
            self._longest = view.ids

    @property
    def scored(self) -> tuple[str, ...]:
        """The splits it is scored on: of the train rows, only the full context's labels are wanted."""
        return ("train", "eval") if self.name == CEILING else ("eval",)

    @property
    def tokenized(self) -> bool:
        """Whether its views are token ids; otherwise a server does the tokenizing."""
        return bool(self._ids)

    def text(self, split: str, row: int) -> str:
        return self._texts[split][row].tobytes().decode()

    def seen(self, split: str, row: int) -> list[int] | str:
        """What the teacher sees of a row: token ids, or the text where a server does the tokenizing."""
        found: list[int] | str = self._ids[split][row].tolist() if self._ids else self.text(split, row)
        return found

    def lengths(self, split: str) -> np.ndarray:
        """Of what the teacher sees, int [N]: tokens, or bytes of text."""
        return (self._ids or self._texts)[split].lengths

    @property
    def shared(self) -> int:
        """Length of the token prefix that all views share, leaving every view at least one token of its own."""
        if not self._ids:
            return 0
        return max(0, min(_shared(list(self._ids.values())), len(self._shortest) - 1))

    @property
    def opening(self) -> Opening:
        return Opening(self.name, self.shared, self._shortest, self._longest)

    def views(self, split: str, rows: Iterable[int]) -> Views:
        """Some rows, as a task carries them."""
        opening = self.opening
        if not self._ids:
            return Views(opening, texts=[self.text(split, row) for row in rows])
        return Views(opening, ids=[self._ids[split][row][opening.shared :].tolist() for row in rows])

    @property
    def shared_text(self) -> str:
        """What the eval rows' texts begin with in common."""
        texts = self._texts["eval"]
        return texts[0][: texts.shared].tobytes().decode(errors="ignore")  # half a character is not shared


def _shared(spools: list[Spool]) -> int:
    first = spools[0][0]
    return min(shared for spool in spools for shared in (spool.shared, shared_start(first, spool[0])))


def arms(
    recipe: Recipe, reader: Reader, dataset: Dataset, contexts: dict[str, Renderer], answer_tokens: int, folder: Path
) -> list[Arm]:
    """Every context of the recipe, the ceiling first; views leave room for ``answer_tokens``, and lie in ``folder``."""
    cut = recipe.contexts.truncate == "input"
    found = []
    for name, renderer in contexts.items():
        arm = Arm(name, folder)
        # The student's text of the train rows is wanted too.
        for split in ("train", "eval") if name in (CEILING, FLOOR) else ("eval",):
            for example in dataset.splits[split]:
                arm.append(split, reader.view(renderer, example, answer_tokens=answer_tokens, cut=cut))
        found.append(arm)
    return found


def write_views(folder: Path, dataset: Dataset, found: Sequence[Arm]) -> None:
    """collect/views.parquet."""
    ceiling, floor = (next(arm for arm in found if arm.name == name) for name in (CEILING, FLOOR))

    def parts() -> Iterator[tuple[str, view_table.ViewTable]]:
        for split, examples in dataset.splits.items():
            for start in range(0, len(examples), GROUP_ROWS):
                rows = list(examples[start : start + GROUP_ROWS])
                places = range(start, start + len(rows))
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


def _tokens(reader: Reader, arm: Arm) -> np.ndarray:
    """Of each eval row's view, int [N]."""
    lengths = arm.lengths("eval")
    if arm.tokenized:
        return lengths
    return np.array([reader.tokens(arm.text("eval", row)) for row in range(len(lengths))])


def facts(recipe: Recipe, reader: Reader, dataset: Dataset, found: Sequence[Arm], fingerprint: str) -> dict[str, Any]:
    """What collect's manifest says of the data, the contexts and the teacher, whatever is asked of it."""
    ceiling, floor = (next(arm for arm in found if arm.name == name) for name in (CEILING, FLOOR))
    return {
        "counts": dataset.counts,
        "context_tokens": {
            side: int(np.median(_tokens(reader, arm))) for side, arm in (("teacher", ceiling), ("student", floor))
        },
        "shared_tokens": ceiling.shared or reader.tokens(ceiling.shared_text),
        "context_text": ceiling.shared_text.replace(MESSAGE, ""),
        "teacher": {"reference": recipe.teacher.model, **reader.facts(), "fingerprint": fingerprint},
    }
