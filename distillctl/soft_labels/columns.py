"""Store columns of response tokens: as Arrow lists, with few significant bits, in the encoding that is smallest.

Only encodings that every common reader knows are used (DuckDB knows no byte-stream-split integers and half floats
before 2.0): that is why a log-probability is a float32 with zeroed low bits, and not a float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.soft_labels.ragged import Ragged

SIGNIFICANT_BITS = 11
"""As many as in float16: a stored value is within a factor 1 ± 2^−11 of the true one."""
PER_TOKEN = pa.list_(pa.float32())
"""One value per response token."""
_LEVEL = 9
"""Compression level of zstd: files are written once and read often."""


def short(values: np.ndarray, bits: int = SIGNIFICANT_BITS) -> np.ndarray:
    """Round float32 to ``bits`` significant bits. The other bits are zero and cost nothing on disk. −inf stays."""
    dropped = 24 - bits
    whole = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half_to_even = np.uint32((1 << (dropped - 1)) - 1) + ((whole >> dropped) & 1)
    return (((whole + half_to_even) >> dropped) << dropped).view(np.float32)


def per_token(name: str) -> pa.Field:
    """Return a field with one float per response token."""
    return pa.field(name, PER_TOKEN)


def per_kept_token(name: str, kind: pa.DataType) -> pa.Field:
    """Return a field with several values per response token."""
    return pa.field(name, pa.list_(pa.list_(kind)))


def array(field: pa.Field, rows: Sequence[Any]) -> pa.Array:
    """Convert responses to an Arrow array. rows: one response each, as [T]; for a nested field, `Ragged`, arrays or [T,
    n]."""
    inner = field.type.value_type
    if pa.types.is_list(inner):
        whole = Ragged.joined(rows)
        return _lists([len(row) for row in rows], _lists(whole.lengths, pa.array(whole.values, inner.value_type)))
    parts = [np.asarray(row) for row in rows]
    return _lists([len(row) for row in rows], pa.array(np.concatenate(parts) if parts else [], inner))


def rows_of(column: pa.ChunkedArray) -> list[Any]:
    """Invert `array` without copying: return arrays [T], or `Ragged` for a nested column."""
    lists = column.combine_chunks()
    lengths, inner = _lengths(lists), lists.flatten()
    if pa.types.is_list(inner.type):
        whole: Any = Ragged(inner.flatten().to_numpy(), _lengths(inner))
    else:
        whole = inner.to_numpy()
    ends = lengths.cumsum()
    return [whole[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def write(path: Path, table: pa.Table, metadata: dict[str, str]) -> None:
    """Write Parquet with page checksums, each column in the encoding in which it is smallest."""
    leaves = [_smallest(table.select([name])) for name in table.column_names]
    _write(path, table, leaves, metadata)


def _smallest(column: pa.Table) -> tuple[str, str]:
    """Return (path of the leaf, its smallest encoding)."""
    leaf, kind = column.column_names[0], column.schema.field(0).type
    while pa.types.is_list(kind):
        leaf, kind = f"{leaf}.list.element", kind.value_type
    if pa.types.is_integer(kind):
        encodings = ["PLAIN", "DELTA_BINARY_PACKED", _DICTIONARY]
    elif pa.types.is_floating(kind):
        encodings = ["BYTE_STREAM_SPLIT", _DICTIONARY]
    else:
        return leaf, "PLAIN"
    sinks = {encoding: pa.BufferOutputStream() for encoding in encodings}
    for encoding, sink in sinks.items():
        _write(sink, column, [(leaf, encoding)], {})
    return leaf, min(encodings, key=lambda encoding: sinks[encoding].tell())


_DICTIONARY = "RLE_DICTIONARY"


def _write(where: object, table: pa.Table, leaves: list[tuple[str, str]], metadata: dict[str, str]) -> None:
    """Write a file. leaves: (path, encoding) of every column."""
    with pq.ParquetWriter(
        where, table.schema, compression="zstd", compression_level=_LEVEL,
        write_page_checksum=True, write_statistics=False, store_schema=False,
        use_dictionary=[leaf for leaf, encoding in leaves if encoding == _DICTIONARY],
        column_encoding={leaf: encoding for leaf, encoding in leaves if encoding != _DICTIONARY},
    ) as writer:  # fmt: skip
        writer.write_table(table)
        if metadata:
            writer.add_key_value_metadata(metadata)


def _lists(lengths: Sequence[int] | np.ndarray, values: pa.Array) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def _lengths(lists: pa.Array) -> np.ndarray:
    offsets: np.ndarray = lists.offsets.to_numpy()
    return np.diff(offsets).astype(np.int64)
