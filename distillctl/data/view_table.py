"""Read and write collect/views.parquet: every row with the texts that teacher and student see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distillctl.errors import UpstreamError, first_line
from distillctl.run_dir.workspace import replacing
from distillctl.untrusted import parquet

COLUMNS = ("id", "split", "input", "reference", "full", "simplified")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_AGAIN = "distillctl collect RECIPE"
_PART = 1024
"""Number of rows that are read at a time."""


@dataclass(frozen=True)
class ViewTable:
    """Rows of one split, in order; ``full`` is the teacher's text, ``simplified`` the student's."""

    id: list[str]
    input: list[str]
    reference: list[str | None]
    full: list[str]
    simplified: list[str]

    def labels(self, names: Sequence[str]) -> list[str]:
        """Return the references of a task with these labels. Raise UpstreamError if one is not a label."""
        if any((other := reference) not in names for reference in self.reference):
            raise UpstreamError(f"views.parquet has the reference {other!r}, which is not a label", next=_AGAIN)
        return [str(reference) for reference in self.reference]

    @property
    def has_references(self) -> bool:
        """Tell whether every row has a reference."""
        return all(reference is not None for reference in self.reference)


def write(path: Path, splits: Mapping[str, ViewTable] | Iterable[tuple[str, ViewTable]]) -> None:
    """Write all splits durably, part by part. Text that the full views share hardly counts after compression."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for split, views in splits.items() if isinstance(splits, Mapping) else splits:
            columns = {"split": [split] * len(views.id)} | {c: getattr(views, c) for c in COLUMNS if c != "split"}
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=_PART)


def read(path: Path, split: str) -> ViewTable:
    """Return one split of views.parquet. Raise UpstreamError if it is damaged."""
    wanted = [name for name in COLUMNS if name != "split"]
    columns: list[list[Any]] = [[] for _ in wanted]
    for part in parts(path, split, *wanted):
        for whole, values in zip(columns, part, strict=True):
            whole += values
    return ViewTable(*columns)


def parts(path: Path, split: str, *columns: str) -> Iterator[tuple[list[Any], ...]]:
    """Yield some columns of a split, some rows at a time. Raise UpstreamError if the file is damaged."""
    wanted = ["split", *columns]
    try:
        with parquet.checked(path, wanted) as file:
            empty = True
            for batch in file.iter_batches(_PART, columns=wanted):
                table = parquet.plain(pa.Table.from_batches([batch]), parquet.most_bytes(path))
                rows = table.filter(pc.equal(table["split"], split))
                if any(rows[name].null_count for name in columns if name != "reference"):
                    raise ValueError(f"it lacks texts of {split}")
                if not all(pa.types.is_string(rows[name].type) for name in columns if rows[name].null_count == 0):
                    raise ValueError("a column is not text")
                if len(rows):
                    empty = False
                    yield tuple(rows[name].to_pylist() for name in columns)
            if empty:
                raise ValueError(f"it has no rows of {split}")
    except (*parquet.ERRORS, TypeError) as error:
        problem = f"damaged: {first_line(error)}"
        raise UpstreamError(problem, where=str(path), next=_AGAIN) from None


def column(path: Path, split: str, name: str) -> list[Any]:
    """Read one column of a split."""
    return [value for (part,) in parts(path, split, name) for value in part]
