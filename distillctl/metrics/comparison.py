"""Arms beside each other: scores with intervals, and how far each is from the ceiling."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from distillctl import cautions
from distillctl.metrics.statistics import difference_interval, mean_interval


def compare(
    rows: dict[str, np.ndarray], metric: str, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """rows: public arm name → one score per eval row, float64 [N], "ceiling" among them.

    Returns each arm's `score`, `low`, `high`, `n`, `metric`, and ceiling − arm as `value`, `low`, `high`.
    """
    arms, gaps = {}, {}
    for arm, values in rows.items():
        interval = mean_interval(values, seed=seed)
        arms[arm] = {
            "score": interval.value,
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
            "metric": metric,
        }
        if arm != "ceiling":
            gaps[arm] = asdict(difference_interval(rows["ceiling"], values, seed=seed))
    return arms, gaps


def warn(gaps: dict[str, dict[str, float]]) -> None:
    """Tell when the context was not doing anything, before training is paid for."""
    if gaps["floor"]["high"] < 0:
        cautions.add(
            "context-harms",
            f"the full context makes the teacher worse ({gaps['floor']['value']:+.3f}): look at the template",
        )
    elif gaps["floor"]["low"] <= 0:
        cautions.add(
            "context-does-nothing",
            "ceiling and floor cannot be told apart: "
            f"the full context changes the score by {gaps['floor']['value']:+.3f} "
            f"({gaps['floor']['low']:+.3f} … {gaps['floor']['high']:+.3f}). On these rows that context was not doing "
            "anything a student could learn; change the context or the data before paying for training",
        )
    for arm, gap in gaps.items():
        if arm != "floor" and gap["low"] <= 0:
            cautions.add(
                "arm-like-ceiling", f"the ceiling and the arm {arm} cannot be told apart ({gap['value']:+.3f})"
            )
