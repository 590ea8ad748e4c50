"""Collect the few-shot examples of every context: from the recipe, from a file, or drawn from the train rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillctl.data import formats, template_sources
from distillctl.data.row_reading import RowReader
from distillctl.data.rows import DiskExamples
from distillctl.errors import DataError
from distillctl.models import model_source
from distillctl.recipe import Data, Recipe, Shot, Shots


def rank(seed: int, identifier: str) -> bytes:
    """Return a seeded sort key, which does not depend on other rows."""
    return hashlib.sha256(f"{seed}:{identifier}".encode()).digest()


def given(recipe: Recipe, reader: RowReader) -> dict[str, list[Shot]]:
    """Return context name → the few-shot examples from the recipe or from a file that it names."""
    examples = {}
    for name, (where, context) in template_sources.contexts(recipe).items():
        if (spec := context.examples) is not None and spec.train is None:
            rows = spec.rows if spec.file is None else _of_file(recipe, spec.file, f"{where}.examples", reader)
            examples[name] = list(rows)
    return examples


def _of_file(recipe: Recipe, reference: str, where: str, reader: RowReader) -> Iterator[Shot]:
    path = model_source.data_file(reference, recipe.folder, where=where)
    if path is None:
        raise DataError(f"there is no file {reference}", where=where)
    for place, row in _rows(path, reference, where):
        if not row.get("input") or not row.get("answer"):
            have = ", ".join(map(str, list(row)[:8]))
            raise DataError(f'needs "input" and "answer" (it has: {have})', where=place)
        yield Shot(input=str(row["input"]), answer=str(row["answer"]), row=reader.columns(place, row))


def _rows(path: Path, reference: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read rows like data files, but by the file's name alone, because no knob of `data` is about it."""
    try:
        yield from formats.rows(path, formats.format_of(path, "auto", where), Data(source=reference))
    except DataError as error:
        remedy = "few-shot files are .jsonl, .csv (with commas), .tsv or .parquet, in UTF-8" if error.next else None
        raise DataError(error.what, where=error.where, next=remedy) from None


def drawn(recipe: Recipe, train: DiskExamples) -> tuple[dict[str, list[Shot]], set[int]]:
    """Return context name → its few-shot examples from the train rows, and the indices of all of them."""
    examples, taken = {}, set[int]()
    words = recipe.task.answers
    for name, (where, context) in template_sources.contexts(recipe).items():
        if context.examples is None or context.examples.train is None:
            continue
        places = _places(recipe, train, context.examples, f"{where}.examples")
        taken |= set(places)
        examples[name] = [
            Shot(
                input=example.input,
                answer=words.get(example.reference or "", example.reference or ""),
                row=dict(example.columns),
            )
            for example in map(train.__getitem__, places)
        ]
    return examples, taken


def _places(recipe: Recipe, train: DiskExamples, spec: Shots, where: str) -> list[int]:
    """Return ``spec.train`` rows in a seeded order, label by label."""
    by_label: dict[str, list[int]] = {name: [] for name in recipe.task.names or [""]}
    for row in sorted(range(len(train)), key=lambda row: rank(spec.seed, train.ids[row])):
        if (reference := train[row].reference) is not None:
            by_label[reference if recipe.task.names else ""].append(row)
    count = spec.train or 0
    turns = max(map(len, by_label.values()))
    chosen = [rows[turn] for turn in range(turns) for rows in by_label.values() if turn < len(rows)][:count]
    if len(chosen) < count:
        raise DataError(f"only {len(chosen)} train rows have a reference, and {count} are needed", where=where)
    return chosen
