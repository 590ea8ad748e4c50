"""Rows: read from the user's files, checked line by line, and split."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distillctl import references
from distillctl.errors import DataError, Unavailable, first_line
from distillctl.recipe import Data, Recipe, Shot, Shots
from distillctl.workspace import file_digest

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Example:
    """One row. ``reference`` is a label name and is only ever used to evaluate."""

    id: str
    input: str
    reference: str | None = None
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The splits, the few-shot examples of each context, and what was left out on the way."""

    train: list[Example]
    eval: list[Example]
    shots: dict[str, list[Shot]]
    """Context name (full, simplified, an arm) → its few-shot examples."""
    counts: dict[str, int] = field(default_factory=dict)


# ── splits ───────────────────────────────────────────────────────────────────────────────────────


def load(recipe: Recipe) -> Dataset:
    """Read, check and split the recipe's data. DataError names file, line and what is wrong."""
    data = recipe.data
    if data.train is not None and data.eval is not None:
        train, dropped_train = _distinct(_examples(recipe, data.train, "data.train"), data)
        held_out, dropped_eval = _distinct(_examples(recipe, data.eval, "data.eval"), data)
        duplicates = dropped_train + dropped_eval
        held_out = held_out[: data.eval_rows]
    else:
        rows, duplicates = _distinct(_examples(recipe, data.source or "", "data.source"), data)
        rows.sort(key=lambda example: _rank(data.seed, example))
        size = data.eval_rows or max(1, len(rows) // 5)
        held_out, train = rows[:size], rows[size:]
    seen = {_normal(example.input) for example in held_out}
    kept = [example for example in train if _normal(example.input) not in seen]
    counts = {"duplicates": duplicates, "overlap": len(train) - len(kept)}
    shots, kept = _take_shots(recipe, kept)
    kept = kept[: data.train_rows]
    for name, rows, wanted in (("train", kept, data.train_rows), ("eval", held_out, data.eval_rows)):
        if not rows:
            raise DataError(f"no rows are left for the {name} split", where="data")
        if wanted is not None and len(rows) < wanted:
            raise DataError(
                f"only {len(rows)} rows for {name}, the recipe asks for {wanted}", where=f"data.{name}_rows"
            )
    counts |= {"train": len(kept), "eval": len(held_out), "shots": sum(map(len, shots.values()))}
    return Dataset(kept, held_out, shots, counts)


def _rank(seed: int, example: Example) -> bytes:
    """A seeded order that a row keeps when others come or go."""
    return hashlib.sha256(f"{seed}:{example.id}".encode()).digest()


def _normal(text: str) -> str:
    return " ".join(text.split())


def _distinct(examples: Iterable[Example], data: Data) -> tuple[list[Example], int]:
    """Drop repeated inputs (or, when they are kept, make their ids differ)."""
    kept: list[Example] = []
    seen: dict[str, int] = {}
    ids: set[str] = set()
    total = 0
    for example in examples:
        total += 1
        key = _normal(example.input)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1 and data.duplicates == "drop":
            continue
        if example.id in ids:
            if data.id is not None:
                raise DataError(f"the id {example.id!r} is given twice", where="data.id")
            example = replace(example, id=f"{example.id}-{seen[key]}")
        ids.add(example.id)
        kept.append(example)
    return kept, total - len(kept)


def _take_shots(recipe: Recipe, train: list[Example]) -> tuple[dict[str, list[Shot]], list[Example]]:
    """Few-shot examples per context; those that are train rows leave the train split."""
    taken: set[str] = set()
    shots: dict[str, list[Shot]] = {}
    contexts = {"full": recipe.contexts.full, "simplified": recipe.contexts.simplified, **recipe.contexts.arms}
    for name, context in contexts.items():
        if context.examples is None:
            continue
        where = f"contexts.{name if name in ('full', 'simplified') else 'arms.' + name}.examples"
        if context.examples.train is not None:
            chosen = _labels_in_turn(recipe, train, context.examples, where)
            taken |= {example.id for example in chosen}
            shots[name] = [Shot(input=e.input, answer=recipe.task.labels[e.reference or ""]) for e in chosen]
        elif context.examples.file is not None:
            shots[name] = list(_shots_of_file(recipe, context.examples.file, where))
        else:
            shots[name] = list(context.examples.rows)
    return shots, [example for example in train if example.id not in taken]


def _labels_in_turn(recipe: Recipe, train: list[Example], spec: Shots, where: str) -> list[Example]:
    """``spec.train`` rows in a seeded order, one label after the other."""
    by_label: dict[str, list[Example]] = {name: [] for name in recipe.task.names}
    for example in sorted(train, key=lambda e: _rank(spec.seed, e)):
        if example.reference is not None:
            by_label[example.reference].append(example)
    count = spec.train or 0
    turns = max(map(len, by_label.values()))
    chosen = [rows[turn] for turn in range(turns) for rows in by_label.values() if turn < len(rows)][:count]
    if len(chosen) < count:
        raise DataError(f"only {len(chosen)} train rows have a reference, {count} are asked for", where=where)
    return chosen


def _shots_of_file(recipe: Recipe, reference: str, where: str) -> Iterator[Shot]:
    path = references.data_file(reference, recipe.folder, where=where)
    if path is None:
        raise DataError(f"no such file: {reference}", where=where)
    for place, row in _rows(path, _format(path, "auto", where), Data(source=reference)):
        if not row.get("input") or not row.get("answer"):
            raise DataError('needs "input" and "answer"', where=place)
        yield Shot(input=str(row["input"]), answer=str(row["answer"]))


def input_files(recipe: Recipe) -> dict[str, Path]:
    """Every local file the rows and contexts depend on, by recipe key. Errors name what is missing."""
    data = recipe.data
    named: dict[str, str | None] = {}
    if data.format != "hub":
        named = {"data.source": data.source, "data.train": data.train, "data.eval": data.eval}
    for name, context in (("full", recipe.contexts.full), ("simplified", recipe.contexts.simplified)):
        named |= _context_files(f"contexts.{name}", context)
    for name, context in recipe.contexts.arms.items():
        named |= _context_files(f"contexts.arms.{name}", context)
    found = {
        key: references.data_file(reference, recipe.folder, where=key) for key, reference in named.items() if reference
    }
    return {key: path for key, path in found.items() if path is not None}


def _context_files(key: str, context: Any) -> dict[str, str | None]:
    return {
        f"{key}.template_file": context.template_file,
        f"{key}.examples.file": context.examples.file if context.examples else None,
    }


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Recipe key → SHA-256 of the file it names."""
    return {key: file_digest(path) for key, path in input_files(recipe).items()}


# ── rows to examples ─────────────────────────────────────────────────────────────────────────────


def _examples(recipe: Recipe, source: str, where: str) -> Iterator[Example]:
    data = recipe.data
    path = None if data.format == "hub" else references.data_file(source, recipe.folder, where=where)
    if path is None:
        rows = _hub_rows(data, source, where)
    else:
        rows = _rows(path, _format(path, data.format, where), data)
    empty = True
    for place, row in rows:
        empty = False
        yield _example(recipe, place, row)
    if empty:
        raise DataError("has no rows", where=str(path or source))


def _example(recipe: Recipe, place: str, row: dict[str, Any]) -> Example:
    data = recipe.data
    text = row.get(data.input)
    if not isinstance(text, str) or not text.strip():
        have = ", ".join(map(str, list(row)[:8]))
        what = f'no "{data.input}" (it has: {have})' if data.input not in row else f'"{data.input}" is empty or no text'
        raise DataError(what, where=place)
    identifier = row.get(data.id) if data.id else hashlib.sha256(_normal(text).encode()).hexdigest()[:16]
    if identifier in (None, ""):
        raise DataError(f'no "{data.id}"', where=place)
    documents = row.get(data.documents) if data.documents else None
    if isinstance(documents, str):
        documents = [documents]
    if documents is not None and not (isinstance(documents, list) and all(isinstance(d, str) for d in documents)):
        raise DataError(f'"{data.documents}" must be text or a list of texts', where=place)
    return Example(str(identifier), text.strip(), _reference(recipe, place, row), tuple(documents or ()))


def _reference(recipe: Recipe, place: str, row: dict[str, Any]) -> str | None:
    column = recipe.data.reference or "reference"
    if column not in row and recipe.data.reference is not None:
        raise DataError(f'no "{column}"', where=place)
    value = row.get(column)
    if value is None or value == "":
        return None
    label = recipe.data.label_map.get(str(value), str(value))
    if label not in recipe.task.labels:
        near = get_close_matches(label, recipe.task.names, n=1)
        hint = f", did you mean {near[0]}?" if near else f" (labels: {', '.join(recipe.task.names)})"
        raise DataError(f'"{column}" is {label!r}, which is no label{hint}', where=place)
    return label


# ── formats: (file:line, row) pairs ──────────────────────────────────────────────────────────────


def _format(path: Path, chosen: str, where: str) -> str:
    if chosen != "auto":
        return chosen
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"what is {path.name}? say data.format ({', '.join(sorted(set(SUFFIXES.values())))}, lines)", where=where
        )
    return SUFFIXES[path.suffix.lower()]


def _rows(path: Path, kind: str, data: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    if kind == "parquet":
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding=data.encoding, newline="") as file:
            if kind == "jsonl":
                yield from _json_rows(path, file)
            elif kind == "lines":
                yield from _pattern_rows(path, file, re.compile(data.pattern or ""))
            else:
                yield from _table_rows(path, file, "\t" if kind == "tsv" else ",")
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(f"is not {data.encoding} text ({error})", where=str(path), next="set data.encoding") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=place) from None
        if not isinstance(row, dict):
            raise DataError("each line must be one JSON object", where=place)
        yield place, row


def _pattern_rows(path: Path, file: Iterable[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        match = pattern.fullmatch(line.rstrip("\r\n"))
        if match is None:
            raise DataError(f"does not match data.pattern: {line.strip()[:60]!r}", where=f"{path}:{number}")
        yield f"{path}:{number}", match.groupdict()


def _table_rows(path: Path, file: Iterable[str], delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise DataError("a column name is given twice", where=f"{path}:1")
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(f"{len(cells)} cells, the header has {len(header)}", where=place)
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"not a table: {error}", where=f"{path}:{reader.line_num}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {error}", where=str(path)) from None


def _hub_rows(data: Data, source: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a hub data set, by `datasets`; the split is the recipe's `train` or `eval`, else `train`."""
    import datasets

    name, split = (data.source, source) if data.source and source != data.source else (source, "train")
    try:
        rows = datasets.load_dataset(name, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError, OSError) as error:
        raise Unavailable(f"no data set {name!r}: {first_line(error)}", where=where) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}]: row {number}", dict(row)
