"""Rows kept in a file and not in memory: of each row, 12 bytes stay.

The file has no name (it is unlinked as soon as it is open), so whatever ends the process also frees the disk. It is
read by position: what was read is the system's page cache, not the process's memory.
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
    """Rows of numbers of one type, in the order they came; of each the file holds what comes after the numbers that it
    begins with in common with the first row: views that share a long context take little."""

    def __init__(self, folder: Path, kind: type[np.generic]) -> None:
        """folder: where the file lies, which needs the room; kind: int32 of token ids, uint8 of text in UTF-8."""
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
        """UnavailableError when the disk is full."""
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
        """int64 [N]."""
        ends = np.frombuffer(self._ends, np.int64)
        lengths: np.ndarray = np.frombuffer(self._common, np.int32) + np.diff(ends) // self._kind.itemsize
        return lengths

    @property
    def shared(self) -> int:
        """How many numbers all rows begin with in common."""
        return min(self._common, default=0)


class Subset(Sequence[Any]):
    """Some rows of a sequence, in an order of their own; each as ``made`` of it."""

    def __init__(self, of: Sequence[Any], rows: Sequence[int] | np.ndarray, made: Callable[[Any], Any] | None = None):
        self._of, self._rows, self._made = of, np.asarray(rows, np.int64), made

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override]
        found = self._of[self._rows[row]]
        return found if self._made is None else self._made(found)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return lengths(self._of)[self._rows]


def lengths(rows: Sequence[Sized]) -> np.ndarray:
    """Of each row, int64 [N]; of those in a file without reading it."""
    known = getattr(rows, "lengths", None)
    return np.fromiter(map(len, rows), np.int64, len(rows)) if known is None else np.asarray(known)


def shared_start(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers two rows begin with in common."""
    size = min(len(a), len(b))
    unlike = np.flatnonzero(a[:size] != b[:size])
    return int(unlike[0]) if len(unlike) else size
