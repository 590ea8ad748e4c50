"""Keep soft labels of responses in files instead of memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distillctl.data.disk_rows import DiskRows
from distillctl.soft_labels.ragged import Ragged


class SpooledLabels:
    """A codec's columns on disk. One value per response: arrays [T], or `Ragged` in a nested column."""

    def __init__(self, folder: Path, fields: Iterable[pa.Field]) -> None:
        self._columns = {field.name: _column(folder, field) for field in fields}

    def append(self, labels: Mapping[str, Any]) -> None:
        """Add the soft labels of one response."""
        for name, column in self._columns.items():
            column.append(labels[name])

    def some(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns of some responses, for `SoftLabelCodec.targets`."""
        return {name: [column[row] for row in rows] for name, column in self._columns.items()}


def _column(folder: Path, field: pa.Field) -> DiskRows | _Nested:
    inner = field.type.value_type
    if pa.types.is_list(inner):
        return _Nested(folder, inner.value_type.to_pandas_dtype())
    return DiskRows(folder, inner.to_pandas_dtype())


class _Nested:
    """A column with several values at each of a response's tokens."""

    def __init__(self, folder: Path, kind: type[np.generic]) -> None:
        self._values, self._counts = DiskRows(folder, kind), DiskRows(folder, np.int32)

    def append(self, value: Any) -> None:
        row = Ragged.of(value)
        self._values.append(row.values)
        self._counts.append(row.lengths)

    def __getitem__(self, row: int) -> Ragged:
        return Ragged(self._values[row], self._counts[row].astype(np.int64))
