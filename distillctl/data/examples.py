"""Read the recipe's data, check them line by line, and split them by a seed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distillctl.data import formats, shots, template_sources
from distillctl.data.row_reading import RowReader, normal
from distillctl.data.rows import LEFT_OUT, Dataset, DiskExamples, Example, ExampleWriter, left_out
from distillctl.errors import DataError
from distillctl.models import model_source
from distillctl.recipe import Data, Recipe
from distillctl.run_dir.workspace import digest, file_digest

# ── splits ───────────────────────────────────────────────────────────────────────────────────────


def load(recipe: Recipe, folder: Path | None = None) -> Dataset:
    """Read, check and split the recipe's data. Raise DataError with file, line and reason.

    folder: holds the rows meanwhile, in files without a name (default: the folder for temporary files).
    """
    data = recipe.data
    reader = RowReader(recipe)
    given = shots.given(recipe, reader)
    inputs = {_digest(shot.input) for examples in given.values() for shot in examples}
    pool = _Pool(recipe, folder or Path(tempfile.gettempdir()), inputs)
    if data.train is not None and data.eval is not None:
        train = pool.read(reader.examples([data.train], "data.train"))
        held_out = pool.read(reader.examples([data.eval], "data.eval"))[: data.eval_rows]
    else:
        both = pool.read(reader.examples(data.sources, "data.source"))
        size = data.eval_rows or max(1, len(both) // 5)
        held_out, train = both.split(size)
    counts = Counter(dict.fromkeys((*LEFT_OUT, "contradictory"), 0))
    counts.update(pool.counts)
    counts.update(reader.counts)
    apart = train.without(held_out.keys)
    counts["overlap"] = len(train) - len(apart)
    drawn, places = shots.drawn(recipe, apart.rows)
    rest = apart.without([apart.keys[place] for place in places])
    counts["shots_in_splits"] += len(apart) - len(rest) - len(places)
    kept = rest[: data.train_rows]
    for name, part, wanted in (("train", kept, data.train_rows), ("eval", held_out, data.eval_rows)):
        if not len(part):
            remedy = "give more rows, or lower data.eval_rows" if name == "train" else "give more rows"
            raise DataError(f"no rows are left for the {name} split ({left_out(counts)})", where="data", next=remedy)
        if wanted is not None and len(part) < wanted:
            raise DataError(
                f"there are only {len(part)} rows for {name}, and the recipe asks for {wanted} ({left_out(counts)})",
                where=f"data.{name}_rows",
            )
    examples = given | drawn
    counts.update(train=len(kept), eval=len(held_out), shots=sum(map(len, examples.values())))
    probes = ExampleWriter(pool.folder)
    for number, text in enumerate(recipe.task.unscored_inputs, 1):
        probes.append(Example(f"probe-{number}", text))
    return Dataset(kept.rows, held_out.rows, examples, dict(counts), probes.rows)


@dataclass(frozen=True)
class _SplitRows:
    """Rows, with digests of what the student sees of them."""

    rows: DiskExamples
    keys: list[bytes]
    referenced: list[bool]
    """Whether each row has a reference."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice) -> _SplitRows:
        return self.take(range(*part.indices(len(self))))

    def take(self, places: Iterable[int]) -> _SplitRows:
        """Return these rows, in this order."""
        chosen = list(places)
        return _SplitRows(
            self.rows.take(chosen),
            [self.keys[place] for place in chosen],
            [self.referenced[place] for place in chosen],
        )

    def split(self, size: int) -> tuple[_SplitRows, _SplitRows]:
        """Return ``size`` rows, the first of those that have a reference and then of the others, and all other rows."""
        places = sorted(range(len(self)), key=lambda place: not self.referenced[place])[:size]
        return self.take(sorted(places)), self.take(sorted(set(range(len(self))) - set(places)))

    def without(self, keys: Collection[bytes]) -> _SplitRows:
        """Return the rows whose digest is not in ``keys``."""
        unwanted = set(keys)
        return self.take(place for place, key in enumerate(self.keys) if key not in unwanted)


class _Pool:
    """Read rows into a file, in the seed's order, without repeated ones and few-shot examples.

    Rows are repeated if the student cannot tell them apart: the same input, ignoring spaces, and the same values in the
    columns that the simplified context shows.
    """

    def __init__(self, recipe: Recipe, folder: Path, shots: set[bytes]) -> None:
        """Prepare an empty pool. shots: digests of the few-shot examples' inputs."""
        self.counts: Counter[str] = Counter()
        self._data, self.folder, self._shots = recipe.data, folder, shots
        self._of_student = template_sources.columns(recipe)["simplified"]
        self._references: dict[bytes, bytes] = {}
        self._contradictory: set[bytes] = set()
        self._names = {name: name.encode() for name in recipe.task.names} or None

    def read(self, examples: Iterable[Example]) -> _SplitRows:
        """Return one split's rows, or all rows."""
        kept, keys, referenced = ExampleWriter(self.folder), list[bytes](), list[bool]()
        seen, ids, again = set[bytes](), set[str](), Counter[str]()
        for example in examples:
            if self._shots and _digest(example.input) in self._shots:
                self.counts["shots_in_splits"] += 1
                continue
            key = self._key(example)
            self._compare(key, example.reference)
            if key in seen and self._data.duplicates == "drop":
                self.counts["duplicates"] += 1
                continue
            seen.add(key)
            if example.id in ids:
                if self._data.id is not None:
                    raise DataError(f"the id {example.id!r} is given twice", where="data.id")
                again[example.id] += 1
                example = replace(example, id=f"{example.id}-{again[example.id] + 1}")
            ids.add(example.id)
            kept.append(example)
            keys.append(key)
            referenced.append(example.reference is not None)
        rows = kept.rows
        order = sorted(range(len(rows)), key=lambda row: shots.rank(self._data.seed, rows.ids[row]))
        return _SplitRows(rows, keys, referenced).take(order)

    def _key(self, example: Example) -> bytes:
        shown = {name: cell for name, cell in example.columns.items() if self._of_student.shows(name)}
        return _digest(example.input, json.dumps(shown, sort_keys=True) if shown else "")

    def _compare(self, key: bytes, reference: str | None) -> None:
        """Count an input, once, if it comes with different references."""
        if reference is None:
            return
        digested = _digest(reference) if self._names is None else self._names[reference]
        if self._references.setdefault(key, digested) != digested and key not in self._contradictory:
            self._contradictory.add(key)
            self.counts["contradictory"] += 1


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(map(normal, filter(None, texts))).encode()).digest()[:16]


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def named_files(recipe: Recipe) -> dict[str, str]:
    """Return recipe key → the reference of a file or folder on which rows and contexts depend."""
    data = recipe.data
    named: dict[str, str | None] = {}
    if data.format != "hub":
        sources = data.sources
        named = {
            "data.source" if len(sources) == 1 else f"data.source[{i}]": reference
            for i, reference in enumerate(sources)
        }
        named |= {"data.train": data.train, "data.eval": data.eval}
    for key, context in template_sources.contexts(recipe).values():
        named |= _context_files(key, context)
    return {key: reference for key, reference in named.items() if reference}


def input_files(recipe: Recipe) -> dict[str, Path]:
    """Return recipe key → local file on which rows and contexts depend. Errors name a missing file."""
    paths = {
        key: model_source.data_file(reference, recipe.folder, where=key)
        for key, reference in named_files(recipe).items()
    }
    return {key: path for key, path in paths.items() if path is not None}


def _context_files(key: str, context: Any) -> dict[str, str | None]:
    return {
        f"{key}.template_file": context.template_file,
        f"{key}.examples.file": context.examples.file if context.examples else None,
    }


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return recipe key → SHA-256 of the file it names, or of the files that are read in the folder."""
    return {key: _fingerprint(key, path, recipe.data) for key, path in input_files(recipe).items()}


def _fingerprint(key: str, path: Path, data: Data) -> str:
    try:
        if path.is_dir():
            return digest([file_digest(file) for file in formats.files(path, data, key)])
        return file_digest(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=f"{key}: {path}") from None
