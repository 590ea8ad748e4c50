"""Label soft labels on disk: one file per shard, one row per view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distillctl.data import view_table
from distillctl.errors import UpstreamError
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import shard_files, shards
from distillctl.soft_labels.shard_files import AGAIN
from distillctl.soft_labels.shards import Shard
from distillctl.untrusted import parquet

_COLUMNS = ("id", "label_log_probs", "label_mass", "label_seen", "next_token", "next_log_prob")


@dataclass(frozen=True)
class SoftLabels:
    """Label probabilities of one arm's rows.

    log_probs: float32 [N, K], raw natural logs. mass: float32 [N], Σ_k Pr(label k). seen: bool [N, K], False if a
    log-probability is an upper bound, which is no part of the mass; None if all are exact. next_token, next_log_prob:
    the teacher's likeliest token after each view, as text, and its log-probability, float32 [N].
    """

    ids: list[str]
    log_probs: np.ndarray
    mass: np.ndarray
    seen: np.ndarray | None = None
    next_token: list[str] | None = None
    next_log_prob: np.ndarray | None = None


def write(folder: Path, shard: Shard, labels: SoftLabels) -> None:
    """Commit a shard atomically."""
    columns = {
        "id": pa.array(labels.ids, pa.string()),
        "label_log_probs": pa.array(list(labels.log_probs), pa.list_(pa.float32())),
        "label_mass": pa.array(labels.mass, pa.float32()),
    }
    if labels.seen is not None:
        columns["label_seen"] = pa.array(list(labels.seen), pa.list_(pa.bool_()))
    if labels.next_token is not None and labels.next_log_prob is not None:
        columns["next_token"] = pa.array(labels.next_token, pa.string())
        columns["next_log_prob"] = pa.array(labels.next_log_prob, pa.float32())
    shard_files.write(folder / shard.file, pa.table(columns))


def present(folder: Path, shard: Shard) -> bool:
    """Tell whether a whole, undamaged shard of exactly these rows exists."""
    try:
        return _read(folder / shard.file).ids == shard.ids
    except UpstreamError:
        return False


def read(workspace: Workspace, arm: str, split: str) -> SoftLabels:
    """Read all rows of an arm from the shards that collect's manifest names, in the order of views.parquet."""
    parts = [_read(path) for path in shards.files(workspace, arm, split)]
    path = workspace.folder("collect") / "views.parquet"
    return in_order(parts, view_table.column(path, split, "id"))


def read_each(workspace: Workspace, arm: str, split: str) -> Iterator[SoftLabels]:
    """Yield all rows of an arm, one shard at a time."""
    return (_read(path) for path in shards.files(workspace, arm, split))


def read_shards(folder: Path, parts: Sequence[Shard]) -> SoftLabels:
    """Read all rows of a finished plan, in the order of its split."""
    read = [_read(folder / shard.file) for shard in parts]
    for shard, part in zip(parts, read, strict=True):
        if part.ids != shard.ids:
            raise UpstreamError("the shard holds other rows", where=str(folder / shard.file), next=AGAIN)
    ids = [row for shard in parts for row in shard.ids]
    return in_order(read, [ids[at] for at in np.argsort(np.concatenate([shard.places for shard in parts]))])


def likeliest(labels: SoftLabels, rows: int) -> list[tuple[str, str, float]]:
    """Return for a few rows the id, the teacher's likeliest token after the view, and its probability."""
    if labels.next_token is None or labels.next_log_prob is None:
        return []
    probs = np.exp(labels.next_log_prob[:rows].astype(np.float64)).tolist()
    return list(zip(labels.ids, labels.next_token, probs, strict=False))


def in_order(parts: Sequence[SoftLabels], ids: Sequence[str]) -> SoftLabels:
    """Join several tables into one, with its rows in the order of ``ids``."""
    place = {row: index for index, row in enumerate(row for part in parts for row in part.ids)}
    if missing := [row for row in ids if row not in place]:
        raise UpstreamError(f"row {missing[0]} has no soft labels", next=AGAIN)
    if len({part.log_probs.shape[1] for part in parts}) > 1:
        raise UpstreamError("the shards have different numbers of labels", next=AGAIN)
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
        table = _table(path)
        labels = SoftLabels(
            table["id"].to_pylist(),
            _matrix(table["label_log_probs"]),
            table["label_mass"].to_numpy().copy(),
            _matrix(table["label_seen"]) if "label_seen" in table.column_names else None,
            table["next_token"].to_pylist() if "next_token" in table.column_names else None,
            table["next_log_prob"].to_numpy().copy() if "next_log_prob" in table.column_names else None,
        )
        if len(labels.log_probs) != len(labels.ids) or np.isnan(labels.log_probs).any():
            raise ValueError("not a log-probability for each row and label")
        return labels
    except (*parquet.ERRORS, AttributeError, TypeError) as error:
        raise shard_files.damaged(path, error) from None


def _table(path: Path) -> pa.Table:
    """Read the shard's columns. Older versions wrote lists of a fixed size, and at first no checksum of the whole
    file."""
    try:
        return shard_files.read(path, _COLUMNS)
    except UpstreamError:
        table = shard_files.read(path, _COLUMNS, required=False)
        if pa.types.is_fixed_size_list(table.schema.field("label_log_probs").type):
            return table
        raise


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return [N, K] from one list per row. Raise ValueError if their lengths differ."""
    lists = column.combine_chunks()
    if len(pc.unique(pc.list_value_length(lists))) != 1:
        raise ValueError("its rows have different numbers of labels")
    matrix: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1).copy()
    return matrix
