"""The unit of commitment in collect: a fixed slice of an arm's rows, in a file named after the hash of its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distillctl.errors import UpstreamError
from distillctl.run_dir.workspace import Workspace, digest

_FILE = re.compile(r".+-\w+-\d{5,}-[0-9a-f]{16}\.parquet")
"""Matches every `Shard.file`."""


@dataclass(frozen=True)
class Shard:
    """A slice of the plan: its rows, and the hash of everything their numbers depend on."""

    arm: str
    split: str
    index: int
    key: str
    ids: list[str]
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), compare=False)
    """Positions of its rows in the split, int32; empty unless the shard comes from `plan`."""

    @property
    def file(self) -> str:
        """Return the shard's path in collect's folder."""
        return f"shards/{self.arm}-{self.split}-{self.index:05d}-{self.key[:16]}.parquet"


def plan(
    arm: str,
    split: str,
    rows: Sequence[str],
    lengths: np.ndarray,
    teacher_input: Callable[[int], Any],
    settings: object,
    shard_rows: int,
) -> list[Shard]:
    """Cut the split into slices of similar length.

    rows: ids. lengths: of their views, int [N]. teacher_input: returns what the teacher sees of a row, its token ids or
    its text (as JSON); called for one slice at a time. settings: everything else in the recipe and the models that
    changes a row's numbers, to the last bit (as JSON), except the machine and the libraries' versions.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    slices = [order[start : start + shard_rows] for start in range(0, len(order), shard_rows)]
    return [
        Shard(
            arm,
            split,
            number,
            digest([settings, [[rows[r], teacher_input(r)] for r in part]]),
            [rows[r] for r in part],
            part,
        )
        for number, part in enumerate(slices)
    ]


def drop_others(folder: Path, shards: Iterable[Shard]) -> None:
    """Remove the shards of earlier plans, and no other file."""
    named = {shard.file for shard in shards}
    for path in (folder / "shards").glob("*.parquet"):
        if _FILE.fullmatch(path.name) and f"shards/{path.name}" not in named:
            path.unlink()


def files(workspace: Workspace, arm: str, split: str) -> list[Path]:
    """Return the shards of an arm that collect's manifest names, in order. Raise UpstreamError if there are none."""
    manifest = workspace.manifest("collect")
    folder = workspace.folder("collect")
    names = sorted(manifest.outputs) if manifest else []
    paths = [folder / name for name in names if name.startswith(f"shards/{arm}-{split}-")]
    if not paths:
        raise UpstreamError(f"no soft labels for {arm}/{split}", where=str(folder), next="distillctl collect RECIPE")
    return paths
