"""Describe candidate graphs with their figures, for the card and for the error if none is good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distillctl.errors import GateFailed
from distillctl.metrics import names

Unit = Literal["label", "token"]
"""What a graph chooses: a label per row, or a token per position."""


@dataclass(frozen=True)
class Candidate:
    """A graph's figures (`search.Figures`; None also if not finite).

    why: the bounds of the gate that it breaks, with the recipe's keys. excess: the largest ratio of a figure to the
    bound it breaks; None if not finite.
    """

    name: str
    bytes: int
    kl: float | None
    kl_percentiles: list[float | None]
    kl_teacher: float | None
    same_top: float
    score: float | None
    p50_ms: float
    why: str | None
    excess: float | None = None

    @property
    def inside(self) -> bool:
        """Tell whether the gate lets it pass."""
        return self.why is None


def measured(
    candidates: Sequence[Candidate], chosen: Candidate, fp32: Mapping[str, Any], unit: Unit, metric: str
) -> list[dict[str, str]]:
    """Return the card's table, with this folder's graph in bold. metric: name of the scores."""
    shown = [
        _figures(candidate, unit, metric)
        | {
            "graph": f"**{candidate.name}** (here)" if candidate is chosen else candidate.name,
            "gate": candidate.why or "inside",
        }
        for candidate in candidates
    ]
    reference = dict.fromkeys(shown[0], "") | {
        "graph": "fp32",
        "size": f"{fp32['bytes'] / 1e6:.2f} MB",
        names.named(metric): _number(fp32["score"], ".4f"),
        "p50, one thread": f"{fp32['p50_ms']:.2f} ms",
    }
    return [reference, *shown]


def nearest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that exceeds the gate by the smallest ratio."""
    return min(candidates, key=lambda candidate: math.inf if candidate.excess is None else candidate.excess)


def none_inside(
    candidates: Sequence[Candidate], fp32: Mapping[str, Any], unit: Unit, metric: str, facts: Mapping[str, Any]
) -> GateFailed:
    """Return the error that lists all candidates, the nearest first. facts: of the search, for the report."""
    lines = [
        "  "
        + ", ".join(f"{key} {value}" for key, value in _figures(candidate, unit, metric).items())
        + f": {candidate.why}"
        for candidate in candidates
    ]
    score = "" if fp32["score"] is None else f"; the fp32 student has {names.named(metric)} {fp32['score']:.4f}"
    near = nearest(candidates)
    times = "" if near.excess is None else f", {near.excess:.3g} times the bound"
    nearest_text = f"the nearest candidate is {near.name}: {near.why}{times}"
    return GateFailed(
        "\n".join([f"no candidate is inside the gate, so nothing is committed{score}", nearest_text, *lines]),
        where="quantize.gate",
        next="distillctl report RECIPE shows the candidates; then loosen the named keys of quantize.gate, or add "
        "quantize.candidates",
        facts={**facts, "nearest": near.name, "why": nearest_text},
    )


def _figures(candidate: Candidate, unit: Unit, metric: str) -> dict[str, str]:
    return {
        "graph": candidate.name,
        "size": f"{candidate.bytes / 1e6:.2f} MB",
        "KL from fp32": _number(candidate.kl, ".5f"),
        "KL from teacher": _number(candidate.kl_teacher, ".5f"),
        f"same top {unit}": f"{candidate.same_top:.2%}",
        names.named(metric): _number(candidate.score, ".4f"),
        "p50, one thread": f"{candidate.p50_ms:.2f} ms",
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
