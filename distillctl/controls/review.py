"""A model's held-out answers next to those of ceiling, floor and controls: cautions, as soon as they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distillctl import cautions
from distillctl.metrics import doubts


def review(
    arm: str,
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, np.ndarray],
    controls: Mapping[str, str],
    metric: str,
) -> None:
    """Caution where the arm's answers collapse, recover little of the context's effect, or do no better than a control.

    answers, scores: arm or control → its answer to every held-out row, and the score of each, float64 [N]. controls:
    name → what it is, in words.
    """
    doubts.collapse(arm, answers[arm], answers["ceiling"])
    doubts.weak(arm, scores, metric)
    doubts.against_controls(arm, scores, controls, metric)


def capped(learned_from: int, rows: int) -> None:
    """Tell that the controls had fewer train rows than the student."""
    if learned_from < rows:
        cautions.add(
            "controls-capped",
            f"The controls learned from the first {learned_from:,} of {rows:,} train rows; with all of them they might "
            "score higher.",
        )
