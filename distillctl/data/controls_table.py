"""Read and write train/controls.parquet, each control's answer to every held-out row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.data import eval_table
from distillctl.errors import UpstreamError
from distillctl.run_dir.workspace import Workspace, replacing

FILE = "controls.parquet"
MOST_ROWS = 20_000
"""The most train rows that controls learn from. It takes seconds, and some hundred megabytes."""


def write(workspace: Workspace, ids: Sequence[str], answers: Mapping[str, Sequence[str]]) -> None:
    """Write a column for each control."""
    columns = {name: pa.array(column, pa.string()) for name, column in answers.items()}
    with replacing(workspace.folder("train") / FILE) as temporary:
        pq.write_table(pa.table({"id": pa.array(ids, pa.string()), **columns}), temporary)


def read(workspace: Workspace, ids: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return control → its answers, in the order of ``ids``. Raise UpstreamError if an answer is missing."""
    path = workspace.folder("train") / FILE
    columns: dict[str, Any] = eval_table.read(path, ids)
    for name in names:
        if not all(isinstance(answer, str) for answer in columns.get(name, [None])):
            raise UpstreamError(f"the control {name} lacks answers", where=str(path), next="distillctl train RECIPE")
    return {name: columns[name] for name in names}
