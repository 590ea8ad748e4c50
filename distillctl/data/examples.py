"""Rows: read from the user's files, checked line by line, and split."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from distillctl import limits, references
from distillctl.data import formats
from distillctl.data.rows import Dataset, Example, Rows, Writer
from distillctl.errors import DataError
from distillctl.recipe import Data, Generate, Recipe, Shot, Shots
from distillctl.workspace import digest, file_digest

# ── splits ───────────────────────────────────────────────────────────────────────────────────────


def load(recipe: Recipe, folder: Path | None = None) -> Dataset:
    """Read, check and split the recipe's data. DataError names file, line and what is wrong.

    folder: where the rows are kept meanwhile, in files without a name (default: where temporary files are).
    """
    data, folder = recipe.data, folder or Path(tempfile.gettempdir())
    if data.train is not None and data.eval is not None:
        train, train_keys, dropped_train = _distinct(_examples(recipe, [data.train], "data.train"), data, folder)
        held_out, eval_keys, dropped_eval = _distinct(_examples(recipe, [data.eval], "data.eval"), data, folder)
        duplicates = dropped_train + dropped_eval
        held_out, eval_keys = held_out[: data.eval_rows], eval_keys[: data.eval_rows]
    else:
        rows, keys, duplicates = _distinct(_examples(recipe, data.sources, "data.source"), data, folder)
        order = sorted(range(len(rows)), key=lambda row: _rank(data.seed, rows.ids[row]))
        size = data.eval_rows or max(1, len(rows) // 5)
        held_out, train = rows.take(order[:size]), rows.take(order[size:])
        eval_keys, train_keys = ([keys[row] for row in part] for part in (order[:size], order[size:]))
    seen = set(eval_keys)
    kept = train.take([row for row, key in enumerate(train_keys) if key not in seen])
    counts = {"duplicates": duplicates, "overlap": len(train) - len(kept)}
    shots, kept = _take_shots(recipe, kept)
    kept = kept[: data.train_rows]
    for name, part, wanted in (("train", kept, data.train_rows), ("eval", held_out, data.eval_rows)):
        if not part:
            raise DataError(f"no rows are left for the {name} split", where="data")
        if wanted is not None and len(part) < wanted:
            raise DataError(
                f"only {len(part)} rows for {name}, the recipe asks for {wanted}", where=f"data.{name}_rows"
            )
    counts |= {"train": len(kept), "eval": len(held_out), "shots": sum(map(len, shots.values()))}
    return Dataset(kept, held_out, shots, counts)


def _rank(seed: int, identifier: str) -> bytes:
    """A seeded order that a row keeps when others come or go."""
    return hashlib.sha256(f"{seed}:{identifier}".encode()).digest()


def _normal(text: str) -> str:
    return " ".join(text.split())


def _distinct(examples: Iterable[Example], data: Data, folder: Path) -> tuple[Rows, list[bytes], int]:
    """Drop repeated inputs (or, when they are kept, make their ids differ). Returns the rows, a digest of each one's
    input, and how many were dropped."""
    kept = Writer(folder)
    keys: list[bytes] = []
    seen: dict[bytes, int] = {}
    ids: set[str] = set()
    total = 0
    for example in examples:
        total += 1
        key = hashlib.sha256(_normal(example.input).encode()).digest()[:16]
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1 and data.duplicates == "drop":
            continue
        if example.id in ids:
            if data.id is not None:
                raise DataError(f"the id {example.id!r} is given twice", where="data.id")
            example = replace(example, id=f"{example.id}-{seen[key]}")
        ids.add(example.id)
        kept.append(example)
        keys.append(key)
    return kept.rows, keys, total - len(keys)


def _take_shots(recipe: Recipe, train: Rows) -> tuple[dict[str, list[Shot]], Rows]:
    """Few-shot examples per context; those that are train rows leave the train split."""
    taken: set[int] = set()
    shots: dict[str, list[Shot]] = {}
    contexts = {"full": recipe.contexts.full, "simplified": recipe.contexts.simplified, **recipe.contexts.arms}
    for name, context in contexts.items():
        if context.examples is None:
            continue
        where = f"contexts.{name if name in ('full', 'simplified') else 'arms.' + name}.examples"
        if context.examples.train is not None:
            rows = _shot_rows(recipe, train, context.examples, where)
            taken |= set(rows)
            chosen = [train[row] for row in rows]
            words = {} if isinstance(recipe.task, Generate) else recipe.classify.labels
            shots[name] = [Shot(input=e.input, answer=words.get(e.reference or "", e.reference or "")) for e in chosen]
        elif context.examples.file is not None:
            shots[name] = list(_shots_of_file(recipe, context.examples.file, where))
        else:
            shots[name] = list(context.examples.rows)
    return shots, train.take([row for row in range(len(train)) if row not in taken]) if taken else train


def _shot_rows(recipe: Recipe, train: Rows, spec: Shots, where: str) -> list[int]:
    """``spec.train`` rows in a seeded order; of labels, one after the other."""
    by_label: dict[str, list[int]] = {name: [] for name in recipe.task.names or [""]}
    for row in sorted(range(len(train)), key=lambda row: _rank(spec.seed, train.ids[row])):
        if (reference := train[row].reference) is not None:
            by_label[reference if recipe.task.names else ""].append(row)
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
    for place, row in formats.rows(path, formats.format_of(path, "auto", where), Data(source=reference)):
        if not row.get("input") or not row.get("answer"):
            raise DataError('needs "input" and "answer"', where=place)
        yield Shot(input=str(row["input"]), answer=str(row["answer"]))


def input_files(recipe: Recipe) -> dict[str, Path]:
    """Every local file the rows and contexts depend on, by recipe key. Errors name what is missing."""
    data = recipe.data
    named: dict[str, str | None] = {}
    if data.format != "hub":
        sources = data.sources
        named = {"data.source" if len(sources) == 1 else f"data.source[{i}]": one for i, one in enumerate(sources)}
        named |= {"data.train": data.train, "data.eval": data.eval}
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
    """Recipe key → SHA-256 of the file it names; of a folder, of the files that are read there."""
    return {key: _fingerprint(key, path, recipe.data) for key, path in input_files(recipe).items()}


def _fingerprint(key: str, path: Path, data: Data) -> str:
    try:
        if path.is_dir():
            return digest([file_digest(file) for file in formats.files(path, data, key)])
        return file_digest(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=f"{key}: {path}") from None


# ── rows to examples ─────────────────────────────────────────────────────────────────────────────


def _examples(recipe: Recipe, sources: Sequence[str], where: str) -> Iterator[Example]:
    data = recipe.data
    left_out = limits.pattern(data.exclude, re.DOTALL) if data.exclude else None
    time = limits.Allowance()
    for source in sources:
        path = None if data.format == "hub" else references.data_file(source, recipe.folder, where=where)
        if path is None:
            rows = formats.hub_rows(data, source, where)
        else:
            rows = chain.from_iterable(
                formats.rows(file, formats.format_of(file, data.format, where), data)
                for file in formats.files(path, data, where)
            )
        empty = True
        for place, row in rows:
            empty = False
            example = _example(recipe, place, row)
            try:
                if left_out is not None:
                    with time:
                        if left_out.search(example.input):
                            continue
            except limits.TookTooLong:
                raise DataError("takes too long on this row's input", where=f"data.exclude: {place}") from None
            yield example
        if empty:
            raise DataError("has no rows", where=str(path or source))


def _example(recipe: Recipe, place: str, row: dict[str, Any]) -> Example:
    data = recipe.data
    text = row.get(data.input)
    if not isinstance(text, str) or not text.strip():
        have = ", ".join(map(str, list(row)[:8]))
        what = f'no "{data.input}" (it has: {have})' if data.input not in row else f'"{data.input}" is empty or no text'
        raise DataError(what, where=place)
    identifier = row.get(data.id) if data.id else hashlib.sha256(_normal(_whole(text, place)).encode()).hexdigest()[:16]
    if identifier in (None, ""):
        raise DataError(f'no "{data.id}"', where=place)
    documents = row.get(data.documents) if data.documents else None
    if isinstance(documents, str):
        documents = [documents]
    if documents is not None and not (isinstance(documents, list) and all(isinstance(d, str) for d in documents)):
        raise DataError(f'"{data.documents}" must be text or a list of texts', where=place)
    reference = _reference(recipe, place, row)
    for part in (text, identifier, reference, *(documents or ())):
        _whole(part, place)
    return Example(str(identifier), text.strip(), reference, tuple(documents or ()))


def _whole(value: Any, place: str) -> Any:
    """A text that can be written down; JSON can name half a surrogate pair."""
    try:
        return value.encode() and value if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair is no text", where=place) from None


def _reference(recipe: Recipe, place: str, row: dict[str, Any]) -> str | None:
    column = recipe.data.reference or "reference"
    if column not in row and recipe.data.reference is not None:
        raise DataError(f'no "{column}"', where=place)
    value = row.get(column)
    if value is None or value == "":
        return None
    if isinstance(recipe.task, Generate):
        if not isinstance(value, str):
            raise DataError(f'"{column}" must be text', where=place)
        return value.strip() or None
    label = recipe.data.label_map.get(str(value), str(value))
    if label not in recipe.classify.labels:
        near = get_close_matches(label, recipe.task.names, n=1)
        hint = f", did you mean {near[0]}?" if near else f" (labels: {', '.join(recipe.task.names)})"
        raise DataError(f'"{column}" is {label!r}, which is no label{hint}', where=place)
    return label
