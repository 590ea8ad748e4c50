"""Percentile-bootstrap 95 % intervals over rows (Efron & Tibshirani 1993, ch. 13); what is compared is drawn together.

Vectors hold one score per row (0 or 1 for a right answer), float or bool [N], the rows in one order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ELEMENTS = 2**20  # of one batch of resampled rows: 8 MiB, whatever N is


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> Interval:
    """mean(values)."""
    means, draws = _means([values], seed, resamples)
    return _interval(means[0], draws[:, 0])


def difference_interval(a: np.ndarray, b: np.ndarray, seed: int = 0, resamples: int = 2000) -> Interval:
    """mean(a) − mean(b), paired over rows."""
    means, draws = _means([a, b], seed, resamples)
    return _interval(means[0] - means[1], draws[:, 0] - draws[:, 1])


def recovered_interval(
    student: np.ndarray, floor: np.ndarray, ceiling: np.ndarray, seed: int = 0, resamples: int = 2000
) -> Interval | None:
    """(mean(student) − mean(floor)) / (mean(ceiling) − mean(floor)), paired over rows.

    None when the interval of ceiling − floor reaches 0: a share of nothing means nothing.
    """
    means, draws = _means([student, floor, ceiling], seed, resamples)
    gap, gaps = means[2] - means[1], draws[:, 2] - draws[:, 1]
    if _interval(gap, gaps).low <= 0:
        return None
    some = gaps > 0  # all but fewer than 2.5 %, by the check above
    return _interval((means[0] - means[1]) / gap, (draws[some, 0] - draws[some, 1]) / gaps[some])


def _means(columns: list[np.ndarray], seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns' means [k], and their means over rows drawn with replacement [resamples, k]."""
    rows = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    generator = np.random.default_rng(seed)
    batch = max(1, _ELEMENTS // rows.size)
    draws = [
        rows[generator.integers(0, len(rows), (min(batch, resamples - start), len(rows)))].mean(axis=1)
        for start in range(0, resamples, batch)
    ]
    return rows.mean(axis=0), np.concatenate(draws)


def _interval(value: float, draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


class Tally:
    """Values that come in parts, of which only the distinct ones are kept, with their counts: rounded, they are few."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)
        self._counts = np.empty(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """values: float32 [N]."""
        self._values, places = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        counts = np.concatenate([self._counts, np.ones(len(values), np.int64)])
        self._counts = np.bincount(places, counts).astype(np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def percentile(self, q: float) -> float:
        """As np.percentile of all values: linear between the two that are nearest in rank."""
        rank = (self.count - 1) * q / 100
        low, high = self._values[np.searchsorted(self._counts.cumsum(), [int(rank), int(np.ceil(rank))], side="right")]
        return float(low + (high - low) * (rank - int(rank)))
