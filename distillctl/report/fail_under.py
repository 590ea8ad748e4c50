"""`report --fail-under NAME=VALUE`: figures that a CI job insists on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillctl.controls import LABELS, TEXTS
from distillctl.errors import GateFailed, UsageError
from distillctl.metrics import names
from distillctl.recipe import Generate, Recipe


@dataclass(frozen=True)
class Bound:
    """The least that a figure may be. name: an arm, whose score it is, or `recovered.ARM`."""

    name: str
    least: float


def parse(options: Sequence[str], recipe: Recipe) -> list[Bound]:
    """Read NAME=VALUE; `recovered` alone is the deployed model's. UsageError where either is none."""
    own = ["deployed", "student", *(["control"] if recipe.train.control else [])]
    own += TEXTS if isinstance(recipe.task, Generate) else LABELS
    known = ["recovered", *(f"recovered.{arm}" for arm in own), "ceiling", "floor", *own, *recipe.contexts.arms]
    found = []
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
        found.append(Bound("recovered.deployed" if name == "recovered" else name, least))
    return found


def check_bounds(bounds: Sequence[Bound], facts: Mapping[str, Any]) -> None:
    """GateFailed with the figures of every bound that does not hold; a figure that is not known holds none."""
    failed = []
    for bound in bounds:
        value, told = _figure(bound.name, facts)
        if value is None or value < bound.least:
            failed.append(f"{bound.name} is {told}, less than {bound.least:g}" if value is not None else told)
    if failed:
        raise GateFailed("; ".join(failed), where="--fail-under", facts=facts)


def _figure(name: str, facts: Mapping[str, Any]) -> tuple[float | None, str]:
    """The value and how it is told."""
    kind, _, arm = name.rpartition(".")
    found = facts["recovered" if kind else "arms"].get(arm)
    if found is None:
        return None, f"{name} is not known: nothing was measured that would tell"
    value = found["value" if kind else "score"]
    what = "" if kind else f" ({names.named(found['metric'])})"
    return value, f"{value:.3f}{what}, 95 % interval {found['low']:.3f} … {found['high']:.3f}"
