"""Check `report --fail-under NAME=VALUE`, the least figures that a CI job accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distillctl.errors import GateFailed, UsageError
from distillctl.metrics import names
from distillctl.recipe import Recipe
from distillctl.report.facts import ReportFacts
from distillctl.run_dir.facts import ArmScore


@dataclass(frozen=True)
class Bound:
    """The least value of a figure. name: an arm, for its score, or `recovered.ARM`."""

    name: str
    least: float


def parse(options: Sequence[str], recipe: Recipe) -> list[Bound]:
    """Parse NAME=VALUE; `recovered` alone stands for the deployed model. Raise UsageError if either is invalid."""
    student_arms = ["deployed", "student", *(["control"] if recipe.train.control else []), *recipe.task.controls]
    known = [
        "recovered",
        *(f"recovered.{arm}" for arm in student_arms),
        "ceiling",
        "floor",
        *student_arms,
        *recipe.contexts.arms,
    ]
    bounds = []
    for option in options:
        name, _, value = option.partition("=")
        if name not in known:
            raise UsageError(f"--fail-under {option}: no figure is called {name!r}", next=f"one of {', '.join(known)}")
        try:
            least = float(value)
        except ValueError:
            least = math.nan
        if not math.isfinite(least):
            raise UsageError(f"--fail-under {option}: {value!r} is no number", next=f"such as --fail-under {name}=0.9")
        bounds.append(Bound("recovered.deployed" if name == "recovered" else name, least))
    return bounds


def check_bounds(bounds: Sequence[Bound], facts: ReportFacts) -> None:
    """Raise GateFailed with the figure of every bound that fails. An unknown figure fails every bound."""
    failed = []
    for bound in bounds:
        value, described = _figure(bound.name, facts)
        if value is None or value < bound.least:
            failed.append(f"{bound.name} is {described}, less than {bound.least:g}" if value is not None else described)
    if failed:
        raise GateFailed("; ".join(failed), where="--fail-under", facts=facts.as_json())


def _figure(name: str, facts: ReportFacts) -> tuple[float | None, str]:
    """Return the value, and its text."""
    kind, _, arm = name.rpartition(".")
    figure = facts.recovered.get(arm) if kind else facts.arms.get(arm)
    if figure is None:
        return None, f"{name} is not known: nothing was measured that would tell"
    value, note = (
        (figure.score, f" ({names.named(figure.metric)})") if isinstance(figure, ArmScore) else (figure.value, "")
    )
    return value, f"{value:.3f}{note}, 95 % interval {figure.low:.3f} … {figure.high:.3f}"
