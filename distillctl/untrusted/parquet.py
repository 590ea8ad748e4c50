"""Read untrusted Parquet files after computing the memory that they need from their page headers.

Sizes and counts in the footer and in page headers may be false, and a few bytes can stand for gigabytes: a page of
zeros, or one long text to which a million rows refer. https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distillctl.untrusted import regular_files

ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, NotImplementedError)
"""The exceptions that reading a damaged or hostile file can raise."""
_PAGE_BYTES = 256 << 20
"""Largest unpacked page. Writers make pages of about 1 MB, unless single values are larger."""
_BYTES, _RATIO = 128 << 20, 2000
"""Largest unpacked size: a constant, plus a number of bytes per byte of the file. Views share a long context, which
compresses very well."""
_VALUES, _VALUES_PER_BYTE = 1 << 20, 16
_BATCH_ROWS = 1024


@contextmanager
def checked(source: Path | pa.Buffer, columns: Collection[str] | None = None) -> Iterator[pq.ParquetFile]:
    """Open a file whose size is bounded; its page checksums are verified on reading. Raise one of `ERRORS` otherwise.

    columns: the columns that will be read, by default all. Texts outside lists come as dictionaries, which `plain`
    decodes.
    """
    with _open(source) as file:
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        whole = {field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)}
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.path in whole]
        chosen = [number for number, leaf in enumerate(leaves) if columns is None or _is_of(leaf.path, columns)]
        with _bytes(source) as (data, size):
            _check(file.metadata, chosen, whole, data, size)
    with _open(source, read_dictionary=texts) as file:
        yield file


def read(source: Path | pa.Buffer, columns: Collection[str] | None = None) -> pa.Table:
    """Read the named columns that exist, by default all, in the file's order."""
    with checked(source, columns) as file:
        wanted = [name for name in file.schema_arrow.names if columns is None or name in columns]
        return plain(file.read(wanted), most_bytes(source))


def rows(file: pq.ParquetFile, columns: list[str], most: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `checked` file. most: its `most_bytes`."""
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
        yield from plain(pa.Table.from_batches([batch]), most).to_pylist()


def most_bytes(source: Path | pa.Buffer) -> int:
    """Return how many bytes a file may have when it is unpacked."""
    return _BYTES + _RATIO * (source.size if isinstance(source, pa.Buffer) else source.stat().st_size)


def plain(table: pa.Table, most: int) -> pa.Table:
    """Decode dictionaries of texts. Raise ValueError if the texts have more than ``most`` bytes (`most_bytes`)."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(index)
            total = sum(_text_bytes(chunk) for chunk in column.chunks)
            if total > most:
                raise ValueError(f"{field.name} would be {total:,} bytes of text")
            dense = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], field.type.value_type)
            table = table.set_column(index, field.name, dense)
    return table


def _text_bytes(chunk: pa.DictionaryArray) -> int:
    lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _open(source: Path | pa.Buffer, **options: Any) -> pq.ParquetFile:
    if isinstance(source, Path):
        regular_files.check_regular(source)
    return pq.ParquetFile(
        pa.BufferReader(source) if isinstance(source, pa.Buffer) else source, page_checksum_verification=True, **options
    )


@contextmanager
def _bytes(source: Path | pa.Buffer) -> Iterator[tuple[IO[bytes] | pa.BufferReader, int]]:
    if isinstance(source, pa.Buffer):
        yield pa.BufferReader(source), source.size
    else:
        with regular_files.opened(source) as file:
            yield file, source.stat().st_size


def _is_of(leaf: str, columns: Collection[str]) -> bool:
    """Tell whether a leaf is one of the columns, or part of one."""
    return leaf in columns or any(leaf.startswith(f"{column}.") for column in columns)


# ── pages ────────────────────────────────────────────────────────────────────────────────────────

_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
"""Fields of a page header that tell the kind of page."""


def _check(
    metadata: pq.FileMetaData, chosen: list[int], whole: set[str], data: IO[bytes] | pa.BufferReader, size: int
) -> None:
    """Raise ValueError if pages lie outside the file, or unpack to too much for its size. whole: columns without
    lists."""
    most_bytes = _BYTES + _RATIO * size
    most_values = _VALUES + _VALUES_PER_BYTE * size
    rows = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    if not 0 <= metadata.num_rows <= most_values or rows != metadata.num_rows:
        raise ValueError(f"{metadata.num_rows:,} rows in {size:,} bytes")
    total = 0
    for group in range(metadata.num_row_groups):
        for number in chosen:
            chunk = metadata.row_group(group).column(number)
            starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
            at, values, longest = min(starts, default=0), 0, 0
            end = at + chunk.total_compressed_size
            if not 0 < at <= end <= size:
                raise ValueError(f"{chunk.path_in_schema} lies outside the file")
            while at < end:
                header, length = _header(data, at, end)
                unpacked, packed = (_number(header.get(field, -1)) for field in (2, 3))
                if not (0 <= unpacked <= _PAGE_BYTES and 0 <= packed <= end - at - length):
                    raise ValueError(f"a page of {chunk.path_in_schema} states impossible sizes")
                inner = header.get(_DATA) or header.get(_DATA_V2) or {}
                count = _number(inner.get(1, 0) if isinstance(inner, dict) else None)
                values += count
                total += unpacked
                if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema not in whole:
                    if _DICTIONARY in header:
                        data.seek(at + length)
                        longest = _longest(data.read(packed), unpacked, chunk.compression)
                    total += longest * count
                at += length + packed
                if total > most_bytes or not 0 <= values <= most_values:
                    raise ValueError(f"{chunk.path_in_schema} would take {total:,} bytes or {values:,} values")


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("a page header has an unexpected field")
    return value


def _longest(page: bytes, unpacked: int, compression: str) -> int:
    """Return the bytes of the longest text in a dictionary page, to which any number of values can refer."""
    whole = memoryview(page if compression == "UNCOMPRESSED" else pa.decompress(page, unpacked, compression.lower()))
    at = longest = 0
    while at + 4 <= len(whole):
        length = int.from_bytes(whole[at : at + 4], "little")
        longest = max(longest, length)
        at += 4 + length
    return longest


def _header(data: IO[bytes] | pa.BufferReader, at: int, end: int) -> tuple[dict[int, Any], int]:
    """Return the page header at ``at``, and its length."""
    for length in (1 << 12, 1 << 20):
        data.seek(at)
        reader = _Thrift(data.read(min(length, end - at)))
        try:
            return reader.struct(), reader.at
        except IndexError:
            continue
    raise ValueError("a page has no header")


class _Thrift:
    """Read Thrift's compact protocol as far as page headers need it: keep integers and structs, skip everything else.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return field id → value."""
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._signed()
            fields[field] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 8:
            raise ValueError("a page header is nested too deeply")
        if kind in (1, 2):  # true and false, which are the type itself
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._unsigned())
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("a page header has an unexpected field")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self.data):
            raise IndexError

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a page header holds a number beyond 64 bits")

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
