"""An arm: the teacher under one context, as text and as token ids."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl.data import view_table
from distillctl.data.examples import Dataset, Example
from distillctl.data.views import CEILING, FLOOR, Renderer, shared_length
from distillctl.errors import DataError
from distillctl.recipe import Recipe
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.shared_context import common_prefix


@dataclass(frozen=True)
class Arm:
    """One context over the splits it is scored on: text and token ids per row, and where the shared tokens end."""

    name: str
    text: dict[str, list[str]]
    ids: dict[str, list[list[int]]]
    shared: int

    @property
    def every(self) -> list[list[int]]:
        """The views of all splits."""
        return [view for part in self.ids.values() for view in part]

    @property
    def median_tokens(self) -> int:
        return int(statistics.median(map(len, self.ids["eval"])))


def arms(
    recipe: Recipe, teacher: Teacher, dataset: Dataset, contexts: dict[str, Renderer], answer_tokens: int
) -> list[Arm]:
    """Every context of the recipe, the ceiling first; views leave room for ``answer_tokens``."""
    limit = teacher.max_length - answer_tokens
    return [_arm(recipe, teacher, dataset, name, renderer, limit) for name, renderer in contexts.items()]


def write_views(folder: Path, dataset: Dataset, found: Sequence[Arm]) -> None:
    """collect/views.parquet."""
    text = {arm.name: arm.text for arm in found}
    tables = {
        split: view_table.ViewTable(
            [e.id for e in rows],
            [e.input for e in rows],
            [e.reference for e in rows],
            text[CEILING][split],
            text[FLOOR][split],
        )
        for split, rows in dataset.splits.items()
    }
    view_table.write(folder / "views.parquet", tables)


def facts(recipe: Recipe, teacher: Teacher, dataset: Dataset, found: Sequence[Arm], fingerprint: str) -> dict[str, Any]:
    """What collect's manifest says of the data, the contexts and the teacher, whatever is asked of it."""
    ceiling, floor = (next(arm for arm in found if arm.name == name) for name in (CEILING, FLOOR))
    return {
        "counts": dataset.counts,
        "context_tokens": {"teacher": ceiling.median_tokens, "student": floor.median_tokens},
        "shared_tokens": ceiling.shared,
        "context_text": ceiling.text["eval"][0][: shared_length(ceiling.text["eval"])],
        "teacher": {
            "reference": recipe.teacher.model,
            "parameters": teacher.parameters,
            "bytes": sum(p.numel() * p.element_size() for p in teacher.model.parameters()),
            "fingerprint": fingerprint,
        },
    }


def _arm(recipe: Recipe, teacher: Teacher, dataset: Dataset, name: str, renderer: Renderer, limit: int) -> Arm:
    # The student's text of the train rows is wanted too, but only the full context is scored on them.
    splits = ("train", "eval") if name in (CEILING, FLOOR) else ("eval",)
    text: dict[str, list[str]] = {}
    ids: dict[str, list[list[int]]] = {}
    for split in splits:
        fitted = [_fit(recipe, teacher, renderer, example, limit) for example in dataset.splits[split]]
        text[split] = [view for view, _ in fitted]
        if split == "eval" or name == CEILING:
            ids[split] = [tokens for _, tokens in fitted]
    shared = common_prefix([view for part in ids.values() for view in part])
    return Arm(name, text, ids, shared)


def _fit(recipe: Recipe, teacher: Teacher, renderer: Renderer, example: Example, limit: int) -> tuple[str, list[int]]:
    """The view and its tokens; too long is an error, or the end of the input is cut, as the recipe says."""
    text = renderer.render(example, teacher.tokenizer)
    ids = teacher.encode(text, chat=renderer.is_chat)
    if not ids:
        raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
    if len(ids) <= limit:
        return text, ids
    words = teacher.tokenizer(example.input, add_special_tokens=False).input_ids
    keep = len(words) - (len(ids) - limit)
    if recipe.contexts.truncate == "never" or keep < 1:
        raise DataError(
            f"row {example.id}: the view has {len(ids)} tokens, the teacher takes {limit} before the answer",
            where=renderer.where,
            next="shorten the context, or set contexts.truncate: input",
        )
    shorter = Example(example.id, teacher.tokenizer.decode(words[:keep]), example.reference, example.documents)
    return _fit(recipe, teacher, renderer, shorter, limit)
