"""Turn a row of the user's files into an example: input, reference, documents, and the templates' columns."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any

from distillctl.data import formats, template_sources
from distillctl.data.rows import Example
from distillctl.data.template_sources import UsedColumns
from distillctl.errors import DataError, RecipeError
from distillctl.models import model_source
from distillctl.recipe import Data, Generate, Recipe
from distillctl.untrusted import limits

MISSING = object()
"""The result of `value` for a missing column."""
_STEP = re.compile(r"([^.\[\]]+)|\[(-?\d+)\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[-?\d+\])*")
_COLUMNS_NAMED = 30
"""Number of columns that an error lists."""
_ROWS_LOOKED_AT = 100
"""Number of rows whose columns an error lists."""


def value(row: Mapping[str, object], path: str) -> Any:
    """Return a column's value, or the value at a path such as ``request.messages[0].content``; `MISSING` without one.

    A column whose name is the whole path comes first.
    """
    if path in row or not _PATH.fullmatch(path):
        return row.get(path, MISSING)
    current: Any = row
    for name, index in _STEP.findall(path):
        if name and isinstance(current, Mapping) and name in current:
            current = current[name]
        elif index and isinstance(current, list) and -len(current) <= int(index) < len(current):
            current = current[int(index)]
        else:
            return MISSING
    return current


def normal(text: str) -> str:
    """Normalise a text, so that equal inputs compare equal."""
    return " ".join(text.split())


def raw_rows(
    recipe: Recipe, source: str, where: str, columns: frozenset[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) pairs of one of the recipe's sources. columns: the wanted ones (default: all)."""
    data = recipe.data
    path = None if data.format == "hub" else model_source.data_file(source, recipe.folder, where=where)
    if path is None:
        return formats.hub_rows(data, source, where)
    return chain.from_iterable(
        formats.rows(file, formats.format_of(file, data.format, where), data, columns)
        for file in formats.files(path, data, where)
    )


class RowReader:
    """Read the rows of a recipe's sources, and remember which rows were left out and which columns exist."""

    def __init__(self, recipe: Recipe) -> None:
        self.counts: Counter[str] = Counter()
        """Numbers of ``excluded``, ``blank`` and ``unreferenced`` rows."""
        self._recipe, self._data = recipe, recipe.data
        self._excluded = limits.pattern(recipe.data.exclude, re.DOTALL) if recipe.data.exclude else None
        self._time = limits.TimeBudget()
        self._used = UsedColumns()
        for context in template_sources.columns(recipe).values():
            self._used |= context
        if isinstance(recipe.task, Generate):
            for key, spec in recipe.task.fields.items():
                self._used |= UsedColumns({spec.column: f"task.fields.{key}"})
        self._present: set[str] = set()

    def examples(self, sources: Sequence[str], where: str) -> Iterator[Example]:
        """Yield the rows of all ``sources`` but those left out. Raise DataError with file, line and reason.

        Raise RecipeError, after the last row, if a template uses a column that no row has.
        """
        for source in sources:
            seen = kept = False
            for place, row in raw_rows(self._recipe, source, where, self._wanted()):
                seen = True
                if (example := self._example(place, row)) is not None:
                    kept = True
                    yield example
            if not seen:
                raise DataError("has no rows", where=self._name(source, where))
            if not kept and not self._excluded:
                raise DataError(
                    f'no row has a text in "{self._data.input}" (the columns: {_listed(self._names(source, where))})',
                    where=self._name(source, where),
                    next="set data.input",
                )
        self._check_columns(sources[0], where)

    def _name(self, source: str, where: str) -> str:
        path = None if self._data.format == "hub" else model_source.data_file(source, self._recipe.folder, where=where)
        return str(path or source)

    def _names(self, source: str, where: str) -> list[str]:
        """Return the columns of a source's first rows."""
        first = islice(raw_rows(self._recipe, source, where, None), _ROWS_LOOKED_AT)
        return list(dict.fromkeys(str(name) for _, row in first for name in row))

    def _wanted(self) -> frozenset[str] | None:
        """Return the columns to read, or None for all (a template uses `row` as a whole)."""
        data, wanted = self._data, self._used.wanted
        named = [name for name in (data.input, data.reference or "reference", data.id, data.documents) if name]
        return (
            None
            if wanted is None
            else wanted | {part for name in named for part in (name, re.split(r"[.\[]", name)[0])}
        )

    def _check_columns(self, source: str, where: str) -> None:
        """Raise RecipeError for a variable that is neither built in nor a column of any row."""
        for name, template in self._used.needed.items():
            if name not in self._present:
                names = self._names(source, where)
                near = get_close_matches(name, [*names, *template_sources.BUILT_IN], n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                variables = ", ".join(sorted(template_sources.BUILT_IN))
                raise RecipeError(
                    f"{name!r} is undefined: no row has such a column{hint} (the columns: {_listed(names)}; every "
                    f"template also has {variables})",
                    where=template,
                )

    def _example(self, place: str, row: dict[str, object]) -> Example | None:
        """Convert a row to an example, or return None if it is left out."""
        data = self._data
        text = value(row, data.input)
        blank = text is MISSING or text is None or (isinstance(text, str) and not text.strip())
        if self._is_excluded("" if blank else text, place):
            self.counts["excluded"] += 1
            return None
        if blank and data.blank == "drop":
            self.counts["blank"] += 1
            return None
        if blank or not isinstance(text, str):
            raise _no_input(place, row, text, data)
        columns = self.columns(place, row)
        self._present |= columns.keys()
        identifier = value(row, data.id) if data.id else _derived_id(text, place)
        if identifier in (MISSING, None, ""):
            raise DataError(f'no "{data.id}"', where=place)
        documents = value(row, data.documents) if data.documents else None
        if isinstance(documents, str):
            documents = [documents]
        if documents is MISSING:
            documents = None
        if documents is not None and not (isinstance(documents, list) and all(isinstance(d, str) for d in documents)):
            raise DataError(f'"{data.documents}" must be text or a list of texts', where=place)
        reference = _reference(self._recipe, place, row)
        if reference is None and data.unreferenced == "drop":
            self.counts["unreferenced"] += 1
            return None
        for part in (text, identifier, reference, *(documents or ())):
            whole(part, place)
        return Example(str(identifier), text.strip(), reference, tuple(documents or ()), columns)

    def _is_excluded(self, text: object, place: str) -> bool:
        if self._excluded is None or not isinstance(text, str):
            return False
        try:
            with self._time:
                return self._excluded.search(text.strip()) is not None
        except limits.TimeBudgetExceeded:
            raise DataError("takes too long on this row's input", where=f"data.exclude: {place}") from None

    def columns(self, place: str, row: Mapping[str, object]) -> dict[str, Any]:
        """Return the columns that templates use, as JSON types."""
        used = {str(name): cell for name, cell in row.items() if self._used.wants(name)}
        try:
            return {whole(name, place): plain(cell) for name, cell in used.items()}
        except UnicodeEncodeError:
            raise DataError("it has half a surrogate pair, which is not valid text", where=place) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"a column cannot be a template's variable: {error}", where=place) from None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_COLUMNS_NAMED]) + (", …" if len(names) > _COLUMNS_NAMED else "")


def plain(cell: object) -> Any:
    """Return a value as JSON; Parquet's dates and decimals become text."""
    if cell is None or isinstance(cell, (str, bool, int, float)):
        return whole(cell) if isinstance(cell, str) else cell
    value = json.loads(json.dumps(cell, ensure_ascii=False, default=_as_text))
    json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
    return value


def _as_text(cell: object) -> str:
    if isinstance(cell, (bytes, bytearray)):
        raise TypeError("bytes are not text")
    return str(cell)


def whole(text: object, place: str | None = None) -> Any:
    """Return a text that can be encoded. Raise DataError for half a surrogate pair, or UnicodeEncodeError without a
    place."""
    try:
        return text.encode() and text if isinstance(text, str) else text
    except UnicodeEncodeError:
        if place is None:
            raise
        raise DataError("it has half a surrogate pair, which is not valid text", where=place) from None


def _derived_id(text: str, place: str) -> str:
    return hashlib.sha256(normal(whole(text, place)).encode()).hexdigest()[:16]


def _has(row: Mapping[str, object]) -> str:
    return f"it has: {', '.join(map(str, list(row)[:8]))}"


def _no_input(place: str, row: dict[str, object], text: object, data: Data) -> DataError:
    drop = "set data.blank: drop to leave such rows out"
    if text is MISSING:
        return DataError(f'no "{data.input}" ({_has(row)})', where=place, next=f"set data.input, or {drop}")
    if isinstance(text, (list, dict)):
        inner = "[0]" if isinstance(text, list) else f".{next(iter(text), 'text')}"
        remedy = f"name a text inside it, such as data.input: {data.input}{inner}"
        return DataError(f'"{data.input}" is a {type(text).__name__}, not text', where=place, next=remedy)
    is_blank = text is None or isinstance(text, str)
    return DataError(f'"{data.input}" is empty or not text', where=place, next=drop if is_blank else None)


def spellings(cell: object) -> list[str]:
    """Return how a column's text, number or boolean may be written as a label; empty for a missing value."""
    if cell is None or cell is MISSING or (isinstance(cell, float) and math.isnan(cell)):
        return []
    if isinstance(cell, bool):
        return [str(cell), str(cell).lower()]
    if isinstance(cell, float) and cell.is_integer():  # whole numbers, once a missing one stands among them
        return [str(cell), str(int(cell))]
    text = str(cell)
    return [text, text.strip()] if text.strip() else []


def _reference(recipe: Recipe, place: str, row: dict[str, object]) -> str | None:
    column = recipe.data.reference or "reference"
    cell = value(row, column)
    if cell is MISSING and recipe.data.reference is not None:
        raise DataError(f'no "{column}" ({_has(row)})', where=place, next="set data.reference")
    written = spellings(cell)
    if not written:
        return None
    mapped = [recipe.data.label_map.get(text, text) for text in written]
    return recipe.task.reference(cell, mapped, column, place)
