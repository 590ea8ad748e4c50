"""Caution about doubtful models: answers that collapse, or scores no better than those of free baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from distillctl import cautions
from distillctl.metrics import fields, names
from distillctl.metrics.statistics import difference_interval, recovered_interval
from distillctl.run_dir.facts import Interval

FEWEST_ROWS = 10
"""Smallest number of rows for a caution about a collapse."""
WEAK = 0.8
"""A student is called weak if the upper bound of the effect that it recovers is below this share."""


def collapse(arm: str, answers: Sequence[str], ceiling: Sequence[str]) -> None:
    """Add a caution if ``answers`` vary far less than the ceiling's to the same rows.

    JSON answers are also checked for each key's values.
    """
    if message := _collapsed(answers, ceiling):
        cautions.add("collapse", f"The answers of the {arm} model collapse: {message}.")
    for key in fields.keys(ceiling):
        wanted = fields.values(ceiling, key)
        rows = [row for row, value in enumerate(wanted) if value is not None]
        values = fields.values([answers[row] for row in rows], key)
        if message := _collapsed([value or "nothing" for value in values], [str(wanted[row]) for row in rows]):
            cautions.add("collapse", f"The {arm} model's values of the key {key!r} collapse: {message}.")


def _collapsed(answers: Sequence[str], wanted: Sequence[str]) -> str | None:
    if len(answers) < FEWEST_ROWS:
        return None
    counts, wanted_counts = Counter(answers), Counter(wanted)
    (most_frequent, rows), most = counts.most_common(1)[0], max(wanted_counts.values())
    others, their_others = len(answers) - rows, len(answers) - most
    one_answer = rows > len(answers) / 2 and (3 * others <= their_others or 2 * most <= rows) and rows - most >= 3
    if not one_answer and 2 * _perplexity(counts) > _perplexity(wanted_counts):
        return None
    return (
        f"{len(counts):,} different on {len(answers):,} rows, where the prompted teacher's are {len(wanted_counts):,}; "
        f"{_short(most_frequent)} on {rows:,} rows, where the teacher's most frequent one is on {most:,}"
    )


def _perplexity(counts: Counter[str]) -> float:
    """Return the number of equally frequent values with the same entropy."""
    shares = np.array(list(counts.values())) / counts.total()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _short(answer: str) -> str:
    return answer if len(answer) <= 60 else f"{answer[:60]}…"


def weak(arm: str, scores: Mapping[str, np.ndarray], metric: str) -> None:
    """Add a caution if an arm recovers little of the context's effect.

    scores: arm → one score per eval row, float64 [N]; it has ``arm``, "ceiling" and "floor".
    """
    if not names.measures_content(metric):
        return
    arm_scores, floor, ceiling = scores[arm], scores["floor"], scores["ceiling"]
    recovered = recovered_interval(arm_scores, floor, ceiling)
    if recovered is None:
        return
    if difference_interval(arm_scores, floor).low <= 0:
        cautions.add(
            "no-better-than-floor",
            f"By its {names.named(metric)} ({arm_scores.mean():.3f}) the {arm} model is not clearly better than the "
            f"teacher without its prompt ({floor.mean():.3f}): it may have none of the context's effect.",
        )
    elif recovered.high < WEAK:
        cautions.add(
            f"weak-{arm}",
            f"The {arm} model recovers {recovered.value:.0%} ({recovered.low:.0%} … {recovered.high:.0%}) of what the "
            f"context does: its {names.named(metric)} is {arm_scores.mean():.3f}, that of the prompted teacher "
            f"{ceiling.mean():.3f}. More train rows, a larger student or longer training may help.",
        )


def against_controls(arm: str, scores: Mapping[str, np.ndarray], controls: Mapping[str, str], metric: str) -> None:
    """Add a caution for each control that ``arm`` does not clearly beat.

    scores: as for `weak`, with the controls. controls: name → description.
    """
    if not names.measures_content(metric):
        return
    for control, description in controls.items():
        lead = difference_interval(scores[arm], scores[control])
        if lead.low <= 0:
            score, control_score = (float(scores[name].mean()) for name in (arm, control))
            cautions.add(NO_BETTER, no_better(arm, score, description, control_score, lead, metric))


NO_BETTER = "no-better-than-control"


def no_better(arm: str, score: float, control: str, control_score: float, lead: Interval, metric: str) -> str:
    """Return the caution for an arm whose lead over a control may be zero. control: its description."""
    return (
        f"The {arm} model is not clearly better than {control}, which costs nothing: {names.named(metric)} {score:.3f} "
        f"against {control_score:.3f}, a difference of {lead.value:+.3f} ({lead.low:+.3f} … {lead.high:+.3f})."
    )


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
    collapse(arm, answers[arm], answers["ceiling"])
    weak(arm, scores, metric)
    against_controls(arm, scores, controls, metric)


def controls_capped(learned_from: int, rows: int) -> None:
    """Tell that the controls had fewer train rows than the student."""
    if learned_from < rows:
        cautions.add(
            "controls-capped",
            f"The controls learned from the first {learned_from:,} of {rows:,} train rows; with all of them they might "
            "score higher.",
        )
