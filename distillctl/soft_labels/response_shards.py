"""Responses and their soft labels on disk: one Parquet file per shard, one row per response.

Columns: id; sample (its number among the responses to one view); text; token_ids (with the end token, if any); cut
(True if no end token came); the codec's columns; and, if it was computed, context_kl: KL(P_full ‖ P_simplified) in nats
at each token of the ceiling's response to the same view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.data import view_table
from distillctl.data.responses import Response
from distillctl.data.views import FLOOR
from distillctl.errors import UpstreamError
from distillctl.losses.targets import Targets
from distillctl.recipe import Text
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import columns, shard_files, shards
from distillctl.soft_labels.shard_files import AGAIN
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels

_SCHEMA = ("id", "sample", "text", "cut", "token_ids")
TOKEN_IDS = pa.field("token_ids", pa.list_(pa.int32()))
CONTEXT_KL = columns.per_token("context_kl")


class SoftLabelCodec(Protocol):
    """Reduce the teacher's distribution at each response token to columns, and turn these into targets."""

    fields: list[pa.Field]
    """The columns: lists of floats, one per response token, or lists of lists."""

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Return the columns' values for T response tokens. log_probs: float32 [T, V], normalised, −inf allowed."""

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> Targets:
        """Return targets for all positions of some rows, one row after the other.

        labels: column → one value per row, as `read` returns them. token_ids: the rows' response tokens. remap: int64
        [V], the new id of each old one, −1 = dropped.
        """

    def captured_mass(self, labels: dict[str, list[Any]]) -> np.ndarray | None:
        """Return Σ p over the kept ids at each response token, float32 [N], or None if it is unknown."""

    def entropy(self, labels: dict[str, list[Any]]) -> np.ndarray | None:
        """Return H(P) in nats at each response token, float32 [N], or None if it is unknown."""


@dataclass(frozen=True)
class Responses:
    """An arm's responses; every list has one entry per response. labels: column → arrays [T] or `Ragged`."""

    id: list[str]
    sample: list[int]
    text: list[str]
    token_ids: list[np.ndarray]
    cut: np.ndarray
    labels: dict[str, list[Any]]
    context_kl: list[np.ndarray] | None = None


def write(folder: Path, shard: Shard, rows: Sequence[tuple[str, int, Response]], codec: SoftLabelCodec) -> None:
    """Commit a shard atomically. rows: id, sample, response."""
    responses = [response for _, _, response in rows]
    per_token: list[tuple[pa.Field, list[Any]]] = [(TOKEN_IDS, [response.token_ids for response in responses])]
    per_token += [(field, [response.labels[field.name] for response in responses]) for field in codec.fields]
    for field, values in per_token:
        for (row, _, response), value in zip(rows, values, strict=True):
            if value is None or len(value) != len(response.token_ids):
                raise ValueError(f"{field.name} of row {row} is not one entry per response token")
    if any(response.context_kl is not None for response in responses):
        if without := [row for row, _, response in rows if response.context_kl is None]:
            raise ValueError(f"row {without[0]} has no context_kl, and others have one")
        per_token.append((CONTEXT_KL, [response.context_kl for response in responses]))
    table = pa.table(
        {
            "id": pa.array([row for row, _, _ in rows], pa.string()),
            "sample": pa.array([sample for _, sample, _ in rows], pa.int32()),
            "text": pa.array([response.text for response in responses], pa.string()),
            "cut": pa.array([response.cut for response in responses], pa.bool_()),
        }
        | {field.name: columns.array(field, values) for field, values in per_token}
    )
    shard_files.write(folder / shard.file, table)


def present(folder: Path, shard: Shard) -> bool:
    """Tell whether a whole, undamaged shard of exactly these rows exists."""
    try:
        stored = shard_files.read(folder / shard.file, {"id"})["id"].to_pylist()
    except UpstreamError:
        return False
    return list(dict.fromkeys(stored)) == shard.ids


def read(workspace: Workspace, arm: str, split: str, codec: SoftLabelCodec) -> Responses:
    """Read the ``codec``'s columns of all responses of an arm, from the shards that collect's manifest names.

    They are in the order of views.parquet, samples ascending.
    """
    ids = view_table.column(workspace.folder("collect") / "views.parquet", split, "id")
    return _in_order(shards.files(workspace, arm, split), ids, codec)


def context_kl(workspace: Workspace) -> list[np.ndarray] | None:
    """Read KL(P_full ‖ P_simplified) in nats at each token of the ceiling's answers to the eval rows, or return None.

    The rows are in the order of views.parquet. None: it was not computed.
    """
    manifest = workspace.manifest("collect")
    if manifest is None or not any(name.startswith(f"shards/{FLOOR}-eval-") for name in manifest.outputs):
        return None
    return read(workspace, FLOOR, "eval", TextLabels(Text())).context_kl


def read_parts(workspace: Workspace, arm: str, split: str, codec: SoftLabelCodec) -> Iterator[Responses]:
    """Yield the ``codec``'s columns of all responses of an arm, one shard at a time."""
    return (_read(path, codec) for path in shards.files(workspace, arm, split))


def read_each(folder: Path, parts: Sequence[Shard], codec: SoftLabelCodec) -> Iterator[tuple[Shard, Responses]]:
    """Yield the responses of a finished plan, one shard at a time."""
    for shard in parts:
        yield shard, _read(folder / shard.file, codec)


def read_shards(folder: Path, parts: Sequence[Shard], ids: Sequence[str], codec: SoftLabelCodec) -> Responses:
    """Read the responses of a finished plan, in the order of ``ids``."""
    return _in_order([folder / shard.file for shard in parts], ids, codec)


def _in_order(paths: Sequence[Path], ids: Sequence[str], codec: SoftLabelCodec) -> Responses:
    parts = [_read(path, codec) for path in paths]
    rows = [(part, row) for part in parts for row in range(len(part.id))]
    by_id: dict[str, list[tuple[Responses, int]]] = {}
    for part, row in sorted(rows, key=lambda entry: entry[0].sample[entry[1]]):
        by_id.setdefault(part.id[row], []).append((part, row))
    if missing := [name for name in ids if name not in by_id]:
        raise UpstreamError(f"row {missing[0]} has no response", where=str(paths[0].parent), next=AGAIN)
    order = [entry for name in ids for entry in by_id[name]]
    kl = [part.context_kl[row] for part, row in order if part.context_kl is not None]
    return Responses(
        [part.id[row] for part, row in order],
        [part.sample[row] for part, row in order],
        [part.text[row] for part, row in order],
        [part.token_ids[row] for part, row in order],
        np.array([part.cut[row] for part, row in order], bool),
        {field.name: [part.labels[field.name][row] for part, row in order] for field in codec.fields},
        kl if len(kl) == len(order) else None,
    )


def _read(path: Path, codec: SoftLabelCodec) -> Responses:
    wanted = {*_SCHEMA, *(field.name for field in codec.fields)}
    table = shard_files.read(path, {*wanted, "context_kl"})
    if missing := sorted(wanted - {*table.column_names}):
        raise UpstreamError(f"the shard has no {missing[-1]}", where=str(path), next=AGAIN)
    return Responses(
        table["id"].to_pylist(),
        table["sample"].to_pylist(),
        table["text"].to_pylist(),
        columns.rows_of(table["token_ids"]),
        table["cut"].to_numpy(),
        {field.name: columns.rows_of(table[field.name]) for field in codec.fields},
        columns.rows_of(table["context_kl"]) if "context_kl" in table.column_names else None,
    )
