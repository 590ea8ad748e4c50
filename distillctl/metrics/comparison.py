"""Compare arms: scores with intervals, and their distance from the ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillctl import cautions
from distillctl.metrics import names
from distillctl.metrics.statistics import difference_interval, mean_interval
from distillctl.run_dir.facts import ArmScore, ContextEffect, Interval


def compare(rows: dict[str, np.ndarray], metric: str) -> tuple[dict[str, ArmScore], dict[str, Interval]]:
    """Return each arm's score, and ceiling − arm.

    rows: public arm name → one score per eval row, float64 [N]; "ceiling" is one of them.
    """
    arms, gaps = {}, {}
    for arm, values in rows.items():
        interval = mean_interval(values)
        if arm == "ceiling" and names.is_vs_ceiling(metric):  # compared with itself: there is no uncertainty
            interval = Interval(value=interval.value, low=interval.value, high=interval.value)
        arms[arm] = ArmScore(score=interval.value, low=interval.low, high=interval.high, n=len(values), metric=metric)
        if arm != "ceiling":
            gaps[arm] = difference_interval(rows["ceiling"], values)
    return arms, gaps


def warn_references(references: Sequence[str | None]) -> None:
    """Caution if arms are scored against the ceiling because some references are missing.

    `data.split_checks` handles eval rows without any reference.
    """
    if 0 < (without := sum(reference is None for reference in references)) < len(references):
        cautions.add(
            "references-incomplete",
            f"{without} of {len(references)} eval rows have no reference. Arms are therefore compared with the "
            "prompted teacher, whose own figure is 1 by construction.",
        )


SAME_ANSWERS = 0.01
SAME_NATS = 0.01
"""A context that changes the answers of fewer than 1 % of the rows, and moves the teacher's distributions by less than
0.01 nats, does nothing that a student could learn."""


def context_effect(differs: np.ndarray, kl: float | None) -> ContextEffect:
    """Return how much the full context changes compared with another context, independent of references.

    differs: bool [N], the rows whose answers differ. kl: mean KL(full ‖ other) in nats, None if unknown.
    """
    return ContextEffect(disagreement=mean_interval(np.asarray(differs, dtype=np.float64)), kl=kl)


def warn(effects: dict[str, ContextEffect], gaps: dict[str, Interval], metric: str) -> None:
    """Caution before training if a context has no effect worth learning.

    effects, gaps: arm → `context_effect` and ceiling − arm; "floor" is one of them.
    """
    for arm, effect in effects.items():
        changes, gap = effect.disagreement, gaps[arm]
        changed = f"the answers of {changes.value:.1%} of the rows ({changes.low:.1%} … {changes.high:.1%})"
        changed += "" if effect.kl is None else f" and the teacher's distributions by {effect.kl:.4f} nats (KL)"
        scored = f"the {names.named(metric)} by {gap.value:+.3f} ({gap.low:+.3f} … {gap.high:+.3f})"
        if changes.low < SAME_ANSWERS and (effect.kl or 0.0) < SAME_NATS:
            if arm == "floor":
                cautions.add(
                    "context-does-nothing",
                    f"Ceiling and floor cannot be told apart: the full context changes {changed}. That is too little "
                    "for a student to learn. Change the context or the data before you pay for training.",
                )
            else:
                cautions.add(
                    "arm-like-ceiling", f"The ceiling and the arm {arm} cannot be told apart: they differ in {changed}."
                )
        elif names.is_vs_ceiling(metric):
            continue  # the score is agreement with the ceiling, so the gap is the disagreement again
        elif gap.high < 0 and arm == "floor":
            cautions.add(
                "context-harms",
                f"The full context makes the teacher worse: it changes {scored}. Check the template.",
            )
        elif gap.low <= 0 and arm == "floor":
            cautions.add(
                "context-does-not-help",
                f"The full context changes {changed}, but it does not measurably improve them: it changes {scored}. A "
                "student has no lead of the ceiling to recover. Change the context, the data or the metric before you "
                "pay for training.",
            )
        elif gap.low <= 0:
            cautions.add("arm-like-ceiling", f"The ceiling is not better than the arm {arm}: it changes {scored}.")
