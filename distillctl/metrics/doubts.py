"""What makes a model's figures doubtful: answers that collapse, and scores no better than what costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from distillctl import cautions
from distillctl.metrics import fields, names
from distillctl.metrics.statistics import difference_interval, recovered_interval

FEWEST_ROWS = 10
"""With fewer rows, nothing is said of a collapse."""
WEAK = 0.8
"""A student that recovers less than this of the context's effect, by its interval's upper bound, is called weak."""


def collapse(arm: str, answers: Sequence[str], ceiling: Sequence[str]) -> None:
    """Add a caution where ``answers`` vary far less than the ceiling's to the same rows, as a whole or, in JSON, in the
    values of one key."""
    if message := _collapsed(answers, ceiling):
        cautions.add("collapse", f"The answers of the {arm} model collapse: {message}.")
    for key in fields.keys(ceiling):
        wanted = fields.values(ceiling, key)
        rows = [row for row, value in enumerate(wanted) if value is not None]
        own = fields.values([answers[row] for row in rows], key)
        if message := _collapsed([value or "nothing" for value in own], [str(wanted[row]) for row in rows]):
            cautions.add("collapse", f"The {arm} model's values of the key {key!r} collapse: {message}.")


def _collapsed(own: Sequence[str], wanted: Sequence[str]) -> str | None:
    if len(own) < FEWEST_ROWS:
        return None
    said, meant = Counter(own), Counter(wanted)
    (answer, rows), most = said.most_common(1)[0], max(meant.values())
    others, their_others = len(own) - rows, len(own) - most
    one_answer = rows > len(own) / 2 and (3 * others <= their_others or 2 * most <= rows) and rows - most >= 3
    if not one_answer and 2 * _perplexity(said) > _perplexity(meant):
        return None
    return (
        f"{len(said):,} different on {len(own):,} rows, where the prompted teacher's are {len(meant):,}; "
        f"{_short(answer)} on {rows:,} rows, where the teacher's most frequent one is on {most:,}"
    )


def _perplexity(counts: Counter[str]) -> float:
    """The number of equally frequent values that would have the same entropy."""
    shares = np.array(list(counts.values())) / counts.total()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _short(answer: str) -> str:
    return answer if len(answer) <= 60 else f"{answer[:60]}…"


def weak(arm: str, scores: Mapping[str, np.ndarray], metric: str) -> None:
    """Add a caution where an arm recovers little of what the context does.

    scores: arm → one score per eval row, float64 [N]; ``arm``, "ceiling" and "floor" among them.
    """
    if not names.measures_content(metric):
        return
    own, floor, ceiling = scores[arm], scores["floor"], scores["ceiling"]
    recovered = recovered_interval(own, floor, ceiling)
    if recovered is None:
        return
    if difference_interval(own, floor).low <= 0:
        cautions.add(
            "no-better-than-floor",
            f"By its {names.named(metric)} ({own.mean():.3f}) the {arm} model is not clearly better than the teacher "
            f"without its prompt ({floor.mean():.3f}): nothing of the context's effect is shown to survive.",
        )
    elif recovered.high < WEAK:
        cautions.add(
            f"weak-{arm}",
            f"The {arm} model recovers {recovered.value:.0%} ({recovered.low:.0%} … {recovered.high:.0%}) of what the "
            f"context does: its {names.named(metric)} is {own.mean():.3f}, that of the prompted teacher "
            f"{ceiling.mean():.3f}. More train rows, a larger student or longer training may help.",
        )


def against_controls(arm: str, scores: Mapping[str, np.ndarray], controls: Mapping[str, str], metric: str) -> None:
    """Add a caution for each control that ``arm`` is not clearly better than.

    scores: as `weak` takes them, the controls among them; controls: name → what it is, in words.
    """
    if not names.measures_content(metric):
        return
    for control, what in controls.items():
        lead = difference_interval(scores[arm], scores[control])
        if lead.low <= 0:
            own, other = (float(scores[one].mean()) for one in (arm, control))
            cautions.add(NO_BETTER, no_better(arm, own, what, other, asdict(lead), metric))


NO_BETTER = "no-better-than-control"


def no_better(arm: str, own: float, control: str, other: float, lead: Mapping[str, float], metric: str) -> str:
    """What is said of an arm whose score's lead over a control's may be none. control: what it is, in words."""
    return (
        f"The {arm} model is not clearly better than {control}, which costs nothing: {names.named(metric)} {own:.3f} "
        f"against {other:.3f}, a difference of {lead['value']:+.3f} ({lead['low']:+.3f} … {lead['high']:+.3f})."
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
