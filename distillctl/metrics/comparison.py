"""Arms beside each other: scores with intervals, and how far each is from the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distillctl import cautions
from distillctl.metrics import names
from distillctl.metrics.statistics import Interval, difference_interval, mean_interval


def compare(rows: dict[str, np.ndarray], metric: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """rows: public arm name → one score per eval row, float64 [N], "ceiling" among them.

    Returns each arm's `score`, `low`, `high`, `n`, `metric`, and ceiling − arm as `value`, `low`, `high`.
    """
    arms, gaps = {}, {}
    for arm, values in rows.items():
        interval = mean_interval(values)
        if arm == "ceiling" and names.is_vs_ceiling(metric):  # compared with itself: nothing was measured
            interval = Interval(interval.value, interval.value, interval.value)
        arms[arm] = {
            "score": interval.value,
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
            "metric": metric,
        }
        if arm != "ceiling":
            gaps[arm] = asdict(difference_interval(rows["ceiling"], values))
    return arms, gaps


def warn_references(references: Sequence[str | None]) -> None:
    """Tell when a few missing references have arms scored against the ceiling; `data.split_checks` tells of none."""
    if 0 < (without := sum(reference is None for reference in references)) < len(references):
        cautions.add(
            "references-incomplete",
            f"{without} of {len(references)} eval rows have no reference: arms are compared with the prompted teacher, "
            "whose own figure is 1 by construction.",
        )


SAME_ANSWERS = 0.01
SAME_NATS = 0.01
"""A context that changes the answers of fewer than 1 % of the rows, and moves the teacher's distributions by less than
0.01 nats, does nothing that a student could learn."""


def context_effect(differs: np.ndarray, kl: float | None) -> dict[str, Any]:
    """What the full context changes against another context, whatever the references say.

    differs: bool [N], the rows whose answers differ; kl: mean KL(full ‖ other) in nats, None where it is not known.
    """
    return {"disagreement": asdict(mean_interval(np.asarray(differs, dtype=np.float64))), "kl": kl}


def warn(effects: dict[str, dict[str, Any]], gaps: dict[str, dict[str, float]], metric: str) -> None:
    """Tell what the context does not do, before training is paid for.

    effects, gaps: arm → `context_effect` and ceiling − arm, "floor" among them.
    """
    for arm, effect in effects.items():
        changes, gap = effect["disagreement"], gaps[arm]
        told = f"the answers of {changes['value']:.1%} of the rows ({changes['low']:.1%} … {changes['high']:.1%})"
        told += "" if effect["kl"] is None else f" and the teacher's distributions by {effect['kl']:.4f} nats (KL)"
        scored = f"the {names.named(metric)} by {gap['value']:+.3f} ({gap['low']:+.3f} … {gap['high']:+.3f})"
        if changes["low"] < SAME_ANSWERS and (effect["kl"] or 0.0) < SAME_NATS:
            if arm == "floor":
                cautions.add(
                    "context-does-nothing",
                    f"Ceiling and floor cannot be told apart: the full context changes {told}. That is nothing a "
                    "student could learn; change the context or the data before paying for training.",
                )
            else:
                cautions.add(
                    "arm-like-ceiling", f"The ceiling and the arm {arm} cannot be told apart: they differ in {told}."
                )
        elif names.is_vs_ceiling(metric):
            continue  # the ceiling is compared with itself: its lead is the disagreement once more
        elif gap["high"] < 0 and arm == "floor":
            cautions.add(
                "context-harms", f"The full context makes the teacher worse: it changes {scored}. Look at the template."
            )
        elif gap["low"] <= 0 and arm == "floor":
            cautions.add(
                "context-does-not-help",
                f"The full context changes {told}, but not measurably for the better: it changes {scored}. There is no "
                "lead of the ceiling that a student could recover; change the context, the data or the metric before "
                "paying for training.",
            )
        elif gap["low"] <= 0:
            cautions.add("arm-like-ceiling", f"The ceiling does not do better than the arm {arm}: {scored}.")
