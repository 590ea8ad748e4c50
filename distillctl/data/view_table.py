"""collect/views.parquet: every row with the text each side sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distillctl.data import parquet
from distillctl.errors import UpstreamError, first_line
from distillctl.workspace import replacing

COLUMNS = ("id", "split", "input", "reference", "full", "simplified")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])


@dataclass(frozen=True)
class ViewTable:
    """Rows of one split, in order; ``full`` is the teacher's text, ``simplified`` the student's."""

    id: list[str]
    input: list[str]
    reference: list[str | None]
    full: list[str]
    simplified: list[str]

    @property
    def has_references(self) -> bool:
        return all(reference is not None for reference in self.reference)


def write(path: Path, splits: Mapping[str, ViewTable] | Iterable[tuple[str, ViewTable]]) -> None:
    """Write all splits durably, a part of a split after the other; what the full views have in common costs next to
    nothing once compressed."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for split, views in splits.items() if isinstance(splits, Mapping) else splits:
            columns = {"split": [split] * len(views.id)} | {c: getattr(views, c) for c in COLUMNS if c != "split"}
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=1024)


def read(path: Path, split: str) -> ViewTable:
    """One split of views.parquet; UpstreamError when it is damaged."""
    try:
        table = parquet.read(path, COLUMNS)
        table = table.filter(pc.equal(table["split"], split))
        if not len(table) or any(table[column].null_count for column in COLUMNS if column != "reference"):
            raise ValueError(f"it lacks rows or texts of {split}")
        return ViewTable(*(table[column].to_pylist() for column in COLUMNS if column != "split"))
    except (*parquet.ERRORS, TypeError) as error:
        what = f"damaged: {first_line(error)}"
        raise UpstreamError(what, where=str(path), next="distillctl collect RECIPE") from None
