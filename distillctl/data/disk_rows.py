"""An append-only sequence of arrays on disk; 12 bytes per row stay in memory.

The file is unlinked when it is opened, so the disk is freed however the process ends. It is read by position, so its
contents are in the system's page cache and not in the process's memory.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from distillctl.run_dir.atomic_io import make_folder, temporary_prefix, writable

_BUFFER = 2**16


class DiskRows(Sequence[np.ndarray]):
    """Arrays of one type in the order in which they were appended.

    The file omits the prefix that a row shares with the first row, so views with a long shared context take little.
    """

    def __init__(self, folder: Path, kind: type[np.generic]) -> None:
        """Create the file in ``folder``. kind: int32 for token ids, uint8 for text in UTF-8."""
        self._kind = np.dtype(kind)
        self._folder = folder
        with writable(folder):
            make_folder(folder)
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                prefix=temporary_prefix(folder / "spool"), suffix=".tmp", dir=folder, buffering=_BUFFER
            )
        self._first = np.empty(0, self._kind)
        self._common = array("i")
        self._ends = array("q", [0])
        self._unread = False

    def append(self, row: np.ndarray | Sequence[int]) -> None:
        """Append a row. Raise UnavailableError if the disk is full."""
        values = np.ascontiguousarray(row, self._kind)
        if not self._common:
            self._first = values.copy()
            self._common.append(len(values))
            self._ends.append(0)
            return
        common = shared_start(self._first, values)
        with writable(self._folder):
            self._file.write(values[common:].tobytes())
        self._common.append(common)
        self._ends.append(self._ends[-1] + (len(values) - common) * self._kind.itemsize)
        self._unread = True

    def __len__(self) -> int:
        return len(self._common)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        if self._unread:
            with writable(self._folder):
                self._file.flush()
            self._unread = False
        start, end = self._ends[row], self._ends[row + 1]
        rest = np.frombuffer(os.pread(self._file.fileno(), end - start, start), self._kind)
        return np.concatenate([self._first[: self._common[row]], rest])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Return the length of each row, int64 [N]."""
        ends = np.frombuffer(self._ends, np.int64)
        lengths: np.ndarray = np.frombuffer(self._common, np.int32) + np.diff(ends) // self._kind.itemsize
        return lengths

    @property
    def shared(self) -> int:
        """Return the length of the prefix that all rows share."""
        return min(self._common, default=0)


class Subset(Sequence[Any]):
    """Some rows of a sequence in a chosen order, each converted by ``made`` if given."""

    def __init__(self, of: Sequence[Any], rows: Sequence[int] | np.ndarray, made: Callable[[Any], Any] | None = None):
        self._of, self._rows, self._made = of, np.asarray(rows, np.int64), made

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]
        item = self._of[self._rows[row]]
        return item if self._made is None else self._made(item)

    @property
    def lengths(self) -> np.ndarray:
        """Return the length of each row, int64 [N]."""
        return lengths(self._of)[self._rows]


def lengths(rows: Sequence[Sized]) -> np.ndarray:
    """Return the length of each row, int64 [N], without reading rows on disk."""
    known = getattr(rows, "lengths", None)
    return np.fromiter(map(len, rows), np.int64, len(rows)) if known is None else np.asarray(known)


def shared_start(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the prefix that two rows share."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
