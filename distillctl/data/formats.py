"""Read the formats of users' files as pairs (file:line, row)."""

from __future__ import annotations

import codecs
import functools
import gzip
import json
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from distillctl.data import tables
from distillctl.errors import DataError, first_line
from distillctl.models import hub
from distillctl.recipe import Data
from distillctl.untrusted import limits, regular_files

_UNPACKED, _RATIO = 4 << 20, 100
"""Largest unpacked .gz: so many characters, or more if it has so many per byte of the file."""
_CATALOG_BYTES = 32 << 20
_SAVE_SHEET = "save the sheet as CSV (UTF-8)"

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".po": "gettext",
}


def format_of(path: Path, chosen: str, where: str) -> str:
    """Return the recipe's format, or the one that the file's name implies."""
    if chosen != "auto":
        return chosen
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path.name} is a workbook, which is not read", where=where, next=_SAVE_SHEET)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path.name} has an unknown format: set data.format ({', '.join(sorted(set(SUFFIXES.values())))}, lines)",
            where=where,
        )
    return SUFFIXES[suffix]


def rows(
    path: Path, kind: str, data: Data, columns: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield pairs (file:line, row). Raise DataError with the line that is wrong.

    columns: the wanted ones (default: all). Only Parquet leaves others out, because they cost time and memory there.
    """
    if kind == "parquet":
        yield from _parquet_rows(path, columns)
        return
    if kind == "gettext":
        yield from _catalog_rows(path)
        return
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        regular_files.check_regular(path)
        with opened(path, "rt", encoding=data.encoding, newline="") as file:
            lines = _lines(path, file)
            if kind == "jsonl":
                yield from _json_rows(path, lines)
            elif kind == "lines":
                yield from _pattern_rows(path, lines, limits.pattern(data.pattern or ""))
            else:
                yield from tables.rows(path, lines, kind, data)
    except (UnicodeError, LookupError, ValueError) as error:
        problem = f"is not {data.encoding} text ({first_line(error)})"
        raise DataError(problem, where=str(path), next=_advice(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Yield lines of bounded length, the first one without a byte-order mark.

    A packed file may have no more of them than text can be packed to.
    """
    most = max(_UNPACKED, _RATIO * path.stat().st_size) if path.suffix == ".gz" else sys.maxsize
    for number, line in enumerate(iter(functools.partial(file.readline, limits.TEXT_BYTES + 1), ""), 1):
        most -= len(line)
        if len(line) > limits.TEXT_BYTES or most < 0:
            problem = f"a line of more than {limits.TEXT_BYTES:,} characters"
            if most < 0:
                problem = f"unpacked, more than {_RATIO} times its size: text is not packed like that"
            raise DataError(problem, where=f"{path}:{number}")
        yield line.removeprefix("\ufeff") if number == 1 else line


def _advice(path: Path) -> str:
    """Return what to do about a file that is not text in the recipe's encoding, judging by its first bytes."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            start = file.read(4)
    except (OSError, EOFError, zlib.error):
        return "set data.encoding"
    if start == b"PK\x03\x04":
        return _SAVE_SHEET
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "set data.encoding: utf-32"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "set data.encoding: utf-16"
    return "set data.encoding, such as cp1252"


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    start = ""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place, start = f"{path}:{number}", start or line.strip()[:1]
        # Other tools write one document over many lines, or a list of all rows, into a .json file.
        remedy = "write one object per line: jq -c '.[]' FILE > FILE.jsonl" if start == "[" else None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if start == "{" and number == 1 and line.strip() == "{":
                remedy = "write each object on a line of its own: jq -c . FILE > FILE.jsonl"
            raise DataError(f"not JSON: {error}", where=place, next=remedy) from None
        if not isinstance(row, dict):
            raise DataError("each line must be one JSON object", where=place, next=remedy)
        yield place, row


def _pattern_rows(path: Path, file: Iterable[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    time = limits.TimeBudget()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            with time:
                match = pattern.fullmatch(line.rstrip("\r\n"))
        except limits.TimeBudgetExceeded:
            raise DataError("data.pattern takes too long on this line", where=f"{path}:{number}") from None
        if match is None:
            raise DataError(f"does not match data.pattern: {line.strip()[:60]!r}", where=f"{path}:{number}")
        yield f"{path}:{number}", match.groupdict()


def _parquet_rows(path: Path, wanted: Collection[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with the wanted columns only; the others may be of any type."""
    from distillctl.untrusted import parquet

    try:
        with parquet.checked(path) as file:
            have = file.schema_arrow.names
            columns = [name for name in have if wanted is None or name in wanted]
            if len(set(columns)) < len(columns):
                raise DataError("a column name is given twice", where=str(path))
            if not columns:
                shown = ", ".join(have[:8])
                raise DataError(
                    f"no column is one of {', '.join(sorted(wanted or ()))} (it has: {shown})", where=str(path)
                )
            for number, row in enumerate(parquet.rows(file, columns, parquet.most_bytes(path)), 1):
                yield f"{path}: row {number}", row
    except parquet.ERRORS as error:
        raise DataError(f"not a Parquet file: {first_line(error)}", where=str(path)) from None


def files(path: Path, data: Data, where: str) -> list[Path]:
    """Return the file, or a folder's catalogs of the language (`format: gettext`), sorted."""
    if not path.is_dir():
        return [path]
    if data.format != "gettext":
        problem = f"{path} is a folder, and only `format: gettext` reads folders"
        raise DataError(problem, where=where, next="name a file, or set data.format: hub for a data set on the hub")
    catalogs = sorted(file for name in data.languages for file in path.glob(f"**/{name}/LC_MESSAGES/*.po"))
    if not catalogs:
        problem = f"no {' or '.join(data.languages)}/LC_MESSAGES/*.po below it"
        raise DataError(problem, where=str(path), next="check data.language")
    return catalogs


def _catalog_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the messages of a gettext catalog: `input`, its translation `reference`, and the author's `context`.

    Obsolete and fuzzy entries, plurals and the header are skipped.
    """
    import polib

    try:
        regular_files.check_regular(path)
        if path.stat().st_size > _CATALOG_BYTES:
            raise ValueError(f"has more than {_CATALOG_BYTES:,} bytes")
        catalog = polib.pofile(_unpacked_catalog(path) if path.suffix == ".gz" else str(path))
    except (OSError, EOFError, zlib.error, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"no gettext catalog: {first_line(error)}", where=str(path)) from None
    for entry in catalog:
        if entry.msgid.strip() and not (entry.obsolete or entry.fuzzy or entry.msgid_plural):
            row = {"input": entry.msgid, "reference": entry.msgstr or None, "context": entry.msgctxt}
            yield f"{path}:{entry.linenum}", row


def _unpacked_catalog(path: Path) -> str:
    """Return a packed catalog's text."""
    with gzip.open(path, "rb") as file:
        data = file.read(_CATALOG_BYTES + 1)
    if len(data) > _CATALOG_BYTES:
        raise ValueError(f"has more than {_CATALOG_BYTES:,} bytes")
    charset = re.search(rb"charset=([\w-]+)", data)
    # polib opens a text that is the name of a file. No such name ends with a line break.
    return data.decode(charset[1].decode() if charset else "utf-8").removeprefix("\ufeff") + "\n"


def hub_rows(data: Data, source: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows of a hub data set; the split is the recipe's `train` or `eval`, else `train`."""
    hub.unreachable()  # before importing datasets, which would try for minutes
    import datasets

    names_a_split = data.train is not None and data.source is not None
    name, split = (data.sources[0], source) if names_a_split else (source, "train")
    try:
        rows = datasets.load_dataset(name, data.subset, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError, OSError) as error:
        raise hub.no_data_set(name, error, where) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}]: row {number}", dict(row)
