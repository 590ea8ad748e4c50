"""Hold rows of different lengths in two flat arrays, such as the tokens kept at each position of a response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[np.ndarray]):
    """Rows of different lengths. values [Σ lengths]: all rows' entries in order. lengths: int64 [N]."""

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Ragged | np.ndarray | Sequence[np.ndarray]) -> Ragged:
        """Convert arrays of any lengths, or one array [N, M]."""
        if isinstance(rows, Ragged):
            return rows
        if isinstance(rows, np.ndarray):
            return cls(rows.reshape(-1), np.full(len(rows), rows.shape[1], np.int64))
        values = np.concatenate(rows) if len(rows) else np.empty(0)
        return cls(values, np.fromiter(map(len, rows), np.int64, len(rows)))

    @classmethod
    def joined(cls, parts: Iterable[Ragged | np.ndarray | Sequence[np.ndarray]]) -> Ragged:
        """Concatenate the rows of all parts."""
        whole = [cls.of(part) for part in parts]
        if not whole:
            return cls(np.empty(0), np.empty(0, np.int64))
        return cls(np.concatenate([part.values for part in whole]), np.concatenate([part.lengths for part in whole]))

    def padded(self, fill: float) -> np.ndarray:
        """Return [N, M], where M is the longest row's length. Shorter rows end in ``fill``."""
        width = int(self.lengths.max(initial=0))
        out = np.full((len(self), width), fill, self.values.dtype)
        out[np.arange(width) < self.lengths[:, None]] = self.values
        return out

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Ragged: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Ragged:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("only whole runs of rows")
            return Ragged(self.values[self._starts[start] : self._starts[max(start, stop)]], self.lengths[index])
        row = range(len(self))[index]
        return self.values[self._starts[row] : self._starts[row + 1]]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], self.lengths.cumsum()])
