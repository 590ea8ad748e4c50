"""The unit of commitment in collect: a fixed slice of an arm's rows, in a file named by what it was computed from."""

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
"""`Shard.file`, whatever the plan."""


@dataclass(frozen=True)
class Shard:
    """A slice of the plan: which rows, and the key of all that their numbers depend on."""

    arm: str
    split: str
    index: int
    key: str
    ids: list[str]
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), compare=False)
    """Of a planned one: where its rows stand in the split, int32."""

    @property
    def file(self) -> str:
        """Return the shard's path in collect's folder."""
        return f"shards/{self.arm}-{self.split}-{self.index:05d}-{self.key[:16]}.parquet"


def plan(
    arm: str,
    split: str,
    rows: Sequence[str],
    lengths: np.ndarray,
    seen: Callable[[int], Any],
    how: Any,
    shard_rows: int,
) -> list[Shard]:
    """The split in slices of like length.

    rows: ids; lengths: of their views, int [N]; seen: what the teacher sees of the row at a place, its token ids or its
    text (as JSON), asked for one slice at a time; how: what else of recipe and models a row's numbers depend on, to the
    last bit (as JSON); not the machine and the libraries' versions.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    slices = [order[start : start + shard_rows] for start in range(0, len(order), shard_rows)]
    return [
        Shard(arm, split, number, digest([how, [[rows[r], seen(r)] for r in part]]), [rows[r] for r in part], part)
        for number, part in enumerate(slices)
    ]


def drop_others(folder: Path, shards: Iterable[Shard]) -> None:
    """Remove the files of plans that are no longer this one; not what else lies beside them."""
    named = {shard.file for shard in shards}
    for path in (folder / "shards").glob("*.parquet"):
        if _FILE.fullmatch(path.name) and f"shards/{path.name}" not in named:
            path.unlink()


def files(workspace: Workspace, arm: str, split: str) -> list[Path]:
    """The shards of an arm that collect's manifest names, in order. UpstreamError when there are none."""
    manifest = workspace.manifest("collect")
    folder = workspace.folder("collect")
    names = sorted(manifest.outputs) if manifest else []
    found = [folder / name for name in names if name.startswith(f"shards/{arm}-{split}-")]
    if not found:
        raise UpstreamError(f"no soft labels for {arm}/{split}", where=str(folder), next="distillctl collect RECIPE")
    return found
