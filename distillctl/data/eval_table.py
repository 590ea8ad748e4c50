"""Read and write eval.parquet: answers of the student (train) and the deployed graph (quantize) per held-out row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distillctl.errors import UpstreamError, first_line
from distillctl.untrusted import parquet


def read(path: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Return the columns but `id`, with rows in the order of ``ids``. A column of nulls (not measured) is left out.

    Floats become float32 [N], lists of floats of one length float32 [N, K], others lists of Python's values. Raises
    UpstreamError if a row is missing.
    """
    try:
        table = parquet.read(path)
        place = {row: index for index, row in enumerate(table["id"].to_pylist())}
        table = table.take([place[row] for row in ids])
        return {
            name: _values(table[name])
            for name in table.column_names
            if name != "id" and table[name].null_count < max(1, len(table))
        }
    except KeyError as error:
        raise UpstreamError(f"there is no row or column {error}", where=str(path)) from None
    except (*parquet.ERRORS, TypeError) as error:
        raise UpstreamError(f"damaged: {first_line(error)}", where=str(path)) from None


def log_probs(path: Path, ids: Sequence[str], column: str, labels: int) -> dict[str, np.ndarray]:
    """Return all columns of log-probabilities, float32 [N, labels]. Raise UpstreamError without ``column``, or for
    others."""
    columns = read(path, ids)
    if column not in columns:
        raise UpstreamError(f"no column {column}", where=str(path))
    for name, values in columns.items():
        if not isinstance(values, np.ndarray) or values.shape != (len(ids), labels) or np.isnan(values).any():
            raise UpstreamError(f"{name} is not a log-probability for each of {labels} labels", where=str(path))
    return columns


def by_row(path: Path, column: str) -> dict[str, Any]:
    """Return id → the row's value in a column. Raise UpstreamError unless every row has one."""
    try:
        table = parquet.read(path, ["id", column])
        values = dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
        if not values or None in values or None in values.values():
            raise ValueError(f"rows without an id or a {column}")
        return values
    except (*parquet.ERRORS, TypeError) as error:
        raise UpstreamError(f"damaged: {first_line(error)}", where=str(path)) from None


def _values(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_floating(kind):
        return column.to_numpy().astype(np.float32)
    if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type):
        return np.array(column.to_pylist(), dtype=np.float32)
    return column.to_pylist()
