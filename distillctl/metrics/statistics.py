"""Return 95 % intervals over rows. Arms are compared on the same rows, which are paired.

Vectors hold one score per row (0 or 1 for a right answer), float or bool [N], the rows in one order. Every interval is
a formula, without resampling. `tests.benchmarks.coverage` measures how often they contain the true value. The usual
percentile bootstrap has no width if all rows are right, and contains the true value in 64 of 100 cases at 20 rows and a
true share of .95.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binomtest, t

from distillctl.run_dir.facts import Interval

FEW = 5
"""With fewer right or wrong rows, a share's interval is Clopper–Pearson's, otherwise Wilson's."""
_Z = 1.959963984540054


def mean_interval(values: np.ndarray) -> Interval:
    """Return the mean of scores from 0 to 1 with its interval.

    If all rows are 0 or 1, by Wilson (1927); with fewer than `FEW` rows of either kind by Clopper and Pearson (1934),
    which contains the true share in at least 95 % of cases. Otherwise by Student's t, after adding two rows with the
    smallest and the largest score.
    """
    rows = np.asarray(values, dtype=np.float64)
    count, mean = len(rows), float(rows.mean())
    if np.isin(rows, (0, 1)).all():
        right = int(rows.sum())
        method = "exact" if min(right, count - right) < FEW else "wilson"
        bounds = binomtest(right, count).proportion_ci(0.95, method)
        return Interval(value=mean, low=min(float(bounds.low), mean), high=max(float(bounds.high), mean))
    least, largest = float(rows.min()), float(rows.max())
    if least == largest:
        # Rows with other scores may be so rare that the sample has none.
        unseen = 1 - 0.025 ** (1 / count)
        return Interval(value=mean, low=mean - unseen * mean, high=mean + unseen * (1 - mean))
    low, high = _padded_interval(rows, least, largest, float(t.ppf(0.975, count - 1)))
    return Interval(value=mean, low=max(low, 0.0), high=min(high, 1.0))


def difference_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """Return mean(a) − mean(b), paired over rows, from −1 to 1, with its interval.

    Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data": two rows are added, one with a difference of 1 and one of −1 (of the largest difference, for scores that are
    not all 0 or 1). So it has a width even if no row differs.
    """
    rows = _difference(a, b)
    largest = _largest(rows)
    low, high = _padded_interval(rows, -largest, largest, _quantile(rows))
    return Interval(value=float(rows.mean()), low=max(low, -1.0), high=min(high, 1.0))


def recovered_interval(student: np.ndarray, floor: np.ndarray, ceiling: np.ndarray) -> Interval | None:
    """Return (mean(student) − mean(floor)) / (mean(ceiling) − mean(floor)), paired over rows, with its interval.

    Fieller (1954), "Some problems in interval estimation": the shares r for which student − floor − r (ceiling − floor)
    cannot be told from 0, after adding two rows in which ceiling and floor are equal and the student is better and
    worse. None if the interval of ceiling − floor reaches 0: then the share means nothing.
    """
    if difference_interval(ceiling, floor).low <= 0:
        return None
    won, gap = _difference(student, floor), _difference(ceiling, floor)
    count, largest = len(won) + 2, _largest(np.concatenate([won, won - gap]))
    x, y = won.sum() / count, gap.sum() / count
    spread = _quantile(np.concatenate([won, gap]), len(won)) ** 2 / count
    xx = spread * ((won @ won + 2 * largest**2) / count - x * x)
    xy = spread * (won @ gap / count - x * y)
    yy = spread * (gap @ gap / count - y * y)
    # Where (x − r y)² ≤ xx − 2 r xy + r² yy; y² > yy, as the gap's own interval does not reach 0.
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Interval(value=float(x / y), low=float((b - root) / a), high=float((b + root) / a))


def _padded_interval(rows: np.ndarray, low: float, high: float, quantile: float) -> tuple[float, float]:
    """Return the mean's interval by the normal approximation, after adding rows that score ``low`` and ``high``."""
    count = len(rows) + 2
    centre = (rows.sum() + low + high) / count
    variance = (rows @ rows + low * low + high * high) / count - centre * centre
    half = quantile * math.sqrt(max(variance, 0.0) / count)
    mean = float(rows.mean())
    return min(float(centre - half), mean), max(float(centre + half), mean)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.shape(a) != np.shape(b):
        raise ValueError(f"columns of shape {np.shape(a)} and {np.shape(b)} are not paired")
    return np.asarray(a, np.float64) - np.asarray(b, np.float64)


def _largest(differences: np.ndarray) -> float:
    """Return the size of the two added rows' scores: the largest difference, or 1 if no row differs."""
    return float(np.abs(differences).max(initial=0)) or 1.0


def _quantile(rows: np.ndarray, count: int | None = None) -> float:
    """Return the normal quantile for shares, as their methods need it, and Student's t for other scores."""
    return _Z if np.isin(rows, (-1, 0, 1)).all() else float(t.ppf(0.975, max((count or len(rows)) - 1, 1)))


class Tally:
    """Count values that come in parts. Only distinct ones are kept; rounded values have few."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)
        self._counts = np.empty(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Add values, float32 [N]."""
        self._values, places = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        counts = np.concatenate([self._counts, np.ones(len(values), np.int64)])
        self._counts = np.bincount(places, counts).astype(np.int64)

    @property
    def count(self) -> int:
        """Return how many values were added."""
        return int(self._counts.sum())

    def percentile(self, q: float) -> float:
        """Return np.percentile of all values, linear between the two nearest ranks."""
        rank = (self.count - 1) * q / 100
        low, high = self._values[np.searchsorted(self._counts.cumsum(), [int(rank), int(np.ceil(rank))], side="right")]
        return float(low + (high - low) * (rank - int(rank)))
