"""File formats: (file:line, row) pairs out of what users have."""

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
"""Of a .gz: so many characters in any case, and otherwise so many for each of its bytes."""
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
    """The format the recipe says, or what the file's name says."""
    if chosen != "auto":
        return chosen
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path.name} is a workbook, which is not read", where=where, next=_SAVE_SHEET)
    if suffix not in SUFFIXES:
        raise DataError(
            f"what is {path.name}? say data.format ({', '.join(sorted(set(SUFFIXES.values())))}, lines)", where=where
        )
    return SUFFIXES[suffix]


def rows(
    path: Path, kind: str, data: Data, columns: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row) pairs. DataError says which line is wrong.

    columns: those that are wanted (all); only Parquet, where the others cost time and memory, leaves any out.
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
        what = f"is not {data.encoding} text ({first_line(error)})"
        raise DataError(what, where=str(path), next=_advice(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Lines of bounded length, the first without a byte-order mark; and of a packed file no more of them than text can
    be packed."""
    most = max(_UNPACKED, _RATIO * path.stat().st_size) if path.suffix == ".gz" else sys.maxsize
    for number, line in enumerate(iter(functools.partial(file.readline, limits.TEXT_BYTES + 1), ""), 1):
        most -= len(line)
        if len(line) > limits.TEXT_BYTES or most < 0:
            what = f"a line of more than {limits.TEXT_BYTES:,} characters"
            if most < 0:
                what = f"unpacked, more than {_RATIO} times its size: text is not packed like that"
            raise DataError(what, where=f"{path}:{number}")
        yield line.removeprefix("\ufeff") if number == 1 else line


def _advice(path: Path) -> str:
    """What to do about a file that is no text in the recipe's encoding, by its first bytes."""
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
        # One document over many lines, or a list of all rows, is what other tools write into a .json file.
        mend = "write one object a line: jq -c '.[]' FILE > FILE.jsonl" if start == "[" else None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if start == "{" and number == 1 and line.strip() == "{":
                mend = "write each object on a line of its own: jq -c . FILE > FILE.jsonl"
            raise DataError(f"not JSON: {error}", where=place, next=mend) from None
        if not isinstance(row, dict):
            raise DataError("each line must be one JSON object", where=place, next=mend)
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
    """Of the wanted columns alone: what nobody reads can be of any kind."""
    from distillctl.untrusted import parquet

    try:
        with parquet.checked(path) as file:
            have = file.schema_arrow.names
            columns = [name for name in have if wanted is None or name in wanted]
            if len(set(columns)) < len(columns):
                raise DataError("a column name is given twice", where=str(path))
            if not columns:
                told = ", ".join(have[:8])
                raise DataError(
                    f"no column is one of {', '.join(sorted(wanted or ()))} (it has: {told})", where=str(path)
                )
            for number, row in enumerate(parquet.rows(file, columns, parquet.most_bytes(path)), 1):
                yield f"{path}: row {number}", row
    except parquet.ERRORS as error:
        raise DataError(f"not a Parquet file: {first_line(error)}", where=str(path)) from None


def files(path: Path, data: Data, where: str) -> list[Path]:
    """The file itself; of a folder, with `format: gettext`, every catalog of the language, sorted."""
    if not path.is_dir():
        return [path]
    if data.format != "gettext":
        what = f"{path} is a folder; of folders only `format: gettext` is read"
        raise DataError(what, where=where, next="name a file, or set data.format: hub if a hub data set is meant")
    found = sorted(file for name in data.languages for file in path.glob(f"**/{name}/LC_MESSAGES/*.po"))
    if not found:
        what = f"no {' or '.join(data.languages)}/LC_MESSAGES/*.po below it"
        raise DataError(what, where=str(path), next="look at data.language")
    return found


def _catalog_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Messages of a gettext catalog: `input` the message, `reference` its translation, `context` what the author says.

    Obsolete and fuzzy entries, plurals and the header are no messages.
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
    """A packed catalog's text."""
    with gzip.open(path, "rb") as file:
        data = file.read(_CATALOG_BYTES + 1)
    if len(data) > _CATALOG_BYTES:
        raise ValueError(f"has more than {_CATALOG_BYTES:,} bytes")
    charset = re.search(rb"charset=([\w-]+)", data)
    # polib takes a text that is the name of a file for that file, and no such name ends a line.
    return data.decode(charset[1].decode() if charset else "utf-8").removeprefix("\ufeff") + "\n"


def hub_rows(data: Data, source: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a hub data set, by `datasets`; the split is the recipe's `train` or `eval`, else `train`."""
    hub.unreachable()  # asked before datasets is imported, which tries for minutes
    import datasets

    names_a_split = data.train is not None and data.source is not None
    name, split = (data.sources[0], source) if names_a_split else (source, "train")
    try:
        rows = datasets.load_dataset(name, data.subset, split=split)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError, OSError) as error:
        raise hub.no_data_set(name, error, where) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}]: row {number}", dict(row)
