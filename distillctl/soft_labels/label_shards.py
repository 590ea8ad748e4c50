"""Label soft labels on disk: one Parquet file per shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.data import view_table
from distillctl.errors import UpstreamError, first_line
from distillctl.run_dir.workspace import Workspace, replacing
from distillctl.soft_labels import checksum, shards
from distillctl.soft_labels.shards import Shard
from distillctl.untrusted import parquet

_AGAIN = "distillctl collect RECIPE"
_COLUMNS = ("id", "label_log_probs", "label_mass", "label_seen", "next_token", "next_log_prob")


@dataclass(frozen=True)
class SoftLabels:
    """Rows of one arm: log_probs float32 [N, K] (raw, natural logs), mass float32 [N] (Σ_k Pr(label k)). seen: bool
    [N, K], False where a log-probability is an upper bound and no part of the mass; None: all are exact. next_token,
    next_log_prob: the teacher's likeliest token after each view, as text, and its log-probability, float32 [N]."""

    ids: list[str]
    log_probs: np.ndarray
    mass: np.ndarray
    seen: np.ndarray | None = None
    next_token: list[str] | None = None
    next_log_prob: np.ndarray | None = None


def write(folder: Path, shard: Shard, labels: SoftLabels) -> None:
    """Commit a shard atomically, with page checksums and a checksum of the whole file."""
    table = pa.table(
        {
            "id": pa.array(labels.ids, pa.string()),
            "label_log_probs": pa.array(list(labels.log_probs), pa.list_(pa.float32(), labels.log_probs.shape[1])),
            "label_mass": pa.array(labels.mass, pa.float32()),
        }
    )
    if labels.seen is not None:
        seen = pa.array(list(labels.seen), pa.list_(pa.bool_(), labels.seen.shape[1]))
        table = table.append_column("label_seen", seen)
    if labels.next_token is not None and labels.next_log_prob is not None:
        table = table.append_column("next_token", pa.array(labels.next_token, pa.string()))
        table = table.append_column("next_log_prob", pa.array(labels.next_log_prob, pa.float32()))
    with replacing(folder / shard.file) as temporary:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(checksum.METADATA)
        checksum.seal(temporary)


def present(folder: Path, shard: Shard) -> bool:
    """Whether a whole, undamaged shard of exactly these rows is there."""
    try:
        return _read(folder / shard.file).ids == shard.ids
    except UpstreamError:
        return False


def read(workspace: Workspace, arm: str, split: str) -> SoftLabels:
    """All rows of an arm in the order of views.parquet, from the shards that collect's manifest names."""
    parts = [_read(path) for path in shards.files(workspace, arm, split)]
    path = workspace.folder("collect") / "views.parquet"
    return in_order(parts, view_table.column(path, split, "id"))


def read_each(workspace: Workspace, arm: str, split: str) -> Iterator[SoftLabels]:
    """All rows of an arm, a shard at a time."""
    return (_read(path) for path in shards.files(workspace, arm, split))


def read_shards(folder: Path, parts: Sequence[Shard]) -> SoftLabels:
    """All rows of a finished plan, in the order of its split."""
    found = [_read(folder / shard.file) for shard in parts]
    for shard, part in zip(parts, found, strict=True):
        if part.ids != shard.ids:
            raise UpstreamError("the shard is of other rows", where=str(folder / shard.file), next=_AGAIN)
    ids = [row for shard in parts for row in shard.ids]
    return in_order(found, [ids[at] for at in np.argsort(np.concatenate([shard.places for shard in parts]))])


def likeliest(labels: SoftLabels, rows: int) -> list[tuple[str, str, float]]:
    """Of a few rows: id, the teacher's likeliest token after the view, and its probability."""
    if labels.next_token is None or labels.next_log_prob is None:
        return []
    probs = np.exp(labels.next_log_prob[:rows].astype(np.float64)).tolist()
    return list(zip(labels.ids, labels.next_token, probs, strict=False))


def in_order(parts: Sequence[SoftLabels], ids: Sequence[str]) -> SoftLabels:
    """One table of several, its rows in the order of ``ids``."""
    place = {row: index for index, row in enumerate(row for part in parts for row in part.ids)}
    if missing := [row for row in ids if row not in place]:
        raise UpstreamError(f"row {missing[0]} has no soft labels", next=_AGAIN)
    if len({part.log_probs.shape[1] for part in parts}) > 1:
        raise UpstreamError("the shards are not of as many labels", next=_AGAIN)
    order = [place[row] for row in ids]

    def joined(name: str) -> np.ndarray | None:
        columns = [getattr(part, name) for part in parts]
        return None if any(column is None for column in columns) else np.concatenate(columns)[order]

    log_probs, mass, words = joined("log_probs"), joined("mass"), joined("next_token")
    assert log_probs is not None
    assert mass is not None
    next_token = None if words is None else words.tolist()
    return SoftLabels(list(ids), log_probs, mass, joined("seen"), next_token, joined("next_log_prob"))


def _read(path: Path) -> SoftLabels:
    try:
        table = parquet.read(pa.py_buffer(checksum.unbroken(path, required=False)), _COLUMNS)
        log_probs = table["label_log_probs"].combine_chunks()
        width = log_probs.type.list_size
        found = SoftLabels(
            table["id"].to_pylist(),
            log_probs.flatten().to_numpy().reshape(-1, width).copy(),
            table["label_mass"].to_numpy().copy(),
            _seen(table),
            table["next_token"].to_pylist() if "next_token" in table.column_names else None,
            table["next_log_prob"].to_numpy().copy() if "next_log_prob" in table.column_names else None,
        )
        if len(found.log_probs) != len(found.ids) or np.isnan(found.log_probs).any():
            raise ValueError("not a log-probability for each row and label")
        return found
    except (*parquet.ERRORS, AttributeError, TypeError) as error:
        raise UpstreamError(f"the shard is damaged: {first_line(error)}", where=str(path), next=_AGAIN) from None


def _seen(table: pa.Table) -> np.ndarray | None:
    if "label_seen" not in table.column_names:
        return None
    column = table["label_seen"].combine_chunks()
    seen: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return seen
