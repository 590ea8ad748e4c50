"""The verdict on the context's effect, as far as a run's figures allow one."""

from __future__ import annotations

from collections.abc import Collection

from distillctl.metrics import names
from distillctl.report import formatting
from distillctl.report.facts import ReportFacts, StageCaution
from distillctl.run_dir.facts import Interval

FEWEST_ROWS = 100
WIDEST = 0.3
"""With fewer held-out rows, or a wider interval of the recovered share, there is no verdict."""


def subject(arms: Collection[str]) -> str:
    """Return the arm that the report is about: the deployed model, or the student where none was deployed."""
    return "deployed" if "deployed" in arms else "student"


def without_effect(facts: ReportFacts) -> str | None:
    """Return the prompt's effect on the teacher in words, if it is nothing that a model could keep."""
    if not names.measures_content(facts.metric) or facts.recovered[facts.subject] is not None:
        return None
    measure = names.named(facts.metric)
    if facts.gaps["floor"].high < 0:
        return f"made the teacher worse by {measure}"
    return f"made no difference to the teacher that could be measured by {measure}"


def kept(facts: ReportFacts) -> str:
    """Return the share of the context's effect that survives, with its interval and its metric, or why there is no
    verdict.

    facts: of a run whose prompt has an effect (`without_effect`).
    """
    arm, measure = facts.recovered[facts.subject], names.named(facts.metric)
    if not names.measures_content(facts.metric):
        return "what its answers say was not measured"
    assert arm is not None
    if doubt := _doubt(facts, arm):
        return f"{doubt} to say how much of what the context did survives"
    share = f"{formatting.percent(arm.value, 0)} ({formatting.interval(arm, 0)})"
    if arm.value <= 0:
        return f"nothing of what the context did survives by {measure} ({share})"
    if arm.low > 1:
        return f"all of what the context did survives by {measure} ({share})"
    return f"{share} of what the context did survives by {measure}"


def cautions(facts: ReportFacts) -> list[StageCaution]:
    """Return the report's own doubts: too few rows, or too wide an interval."""
    arm = facts.recovered[facts.subject]
    if not names.measures_content(facts.metric) or not (doubt := _doubt(facts, arm)):
        return []
    rows = facts.arms["ceiling"].n
    measured = "" if arm is None else f"; recovered {arm.value:.2f} ({arm.low:.2f} … {arm.high:.2f})"
    why = "" if rows < FEWEST_ROWS else f" with {rows:,} held-out rows"
    text = f"{doubt[0].upper()}{doubt[1:]} for a verdict{why}{measured}. Raise data.eval_rows."
    return [StageCaution(stage="report", code="too-few-rows", text=text)]


def _doubt(facts: ReportFacts, recovered: Interval | None) -> str | None:
    rows = facts.arms["ceiling"].n
    if rows < FEWEST_ROWS:
        return f"{rows:,} held-out rows are too few"
    if recovered and recovered.high - recovered.low > WIDEST:
        return f"the interval of {formatting.interval(recovered, 0)} is too wide"
    return None
