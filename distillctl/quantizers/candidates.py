"""Describe candidate graphs with their figures, for the card and for the error if none is good enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from distillctl.errors import GateFailed
from distillctl.metrics import names
from distillctl.run_dir.facts import Candidate, FailedSearch, Interval, SearchFacts

Unit = Literal["label", "token"]
"""The choice of a graph: a label per row, or a token per position."""


def measured(search: SearchFacts, unit: Unit) -> list[dict[str, str]]:
    """Return the card's table, with this folder's graph, the chosen one, in bold."""
    metric, fp32 = search.metric, search.fp32
    shown = [
        _figures(candidate, unit, metric)
        | {
            "graph": f"**{candidate.name}** (here)" if candidate.chosen else candidate.name,
            "gate": candidate.why or "inside",
        }
        for candidate in search.candidates
    ]
    reference = dict.fromkeys(shown[0], "") | {
        "graph": "fp32",
        "size": f"{fp32.bytes / 1e6:.2f} MB",
        names.named(metric): _number(fp32.score, ".4f"),
        "p50, one thread": f"{fp32.p50_ms:.2f} ms",
    }
    return [reference, *shown]


def nearest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that exceeds the gate by the smallest ratio."""
    return min(candidates, key=lambda candidate: math.inf if candidate.excess is None else candidate.excess)


def none_inside(search: SearchFacts, unit: Unit) -> GateFailed:
    """Return the error that lists all candidates, the nearest first."""
    metric, score = search.metric, search.fp32.score
    lines = [
        "  "
        + ", ".join(f"{key} {value}" for key, value in _figures(candidate, unit, metric).items())
        + f": {candidate.why}"
        for candidate in search.candidates
    ]
    fp32 = "" if score is None else f"; the fp32 student has {names.named(metric)} {score:.4f}"
    near = nearest(search.candidates)
    times = "" if near.excess is None else f", {near.excess:.3g} times the bound"
    nearest_text = f"the nearest candidate is {near.name}: {near.why}{times}"
    more_rows = any("max_score_drop_high" in (candidate.why or "") for candidate in search.candidates)
    return GateFailed(
        "\n".join([f"no candidate is inside the gate, so nothing is committed{fp32}", nearest_text, *lines]),
        where="quantize.gate",
        next="distillctl report RECIPE shows the candidates; then loosen the named keys of quantize.gate, or add "
        "quantize.candidates" + (", or raise data.eval_rows, which narrows the intervals" if more_rows else ""),
        facts=FailedSearch(**search.given, nearest=near.name, why=nearest_text).as_json(),
    )


def _figures(candidate: Candidate, unit: Unit, metric: str) -> dict[str, str]:
    return {
        "graph": candidate.name,
        "size": f"{candidate.bytes / 1e6:.2f} MB",
        "KL from fp32": _number(candidate.kl, ".5f"),
        "KL from teacher": _number(candidate.kl_teacher, ".5f"),
        f"same top {unit}": f"{candidate.same_top:.2%}",
        names.named(metric): _number(candidate.score, ".4f"),
        "drop": drop(candidate.score_drop),
        "p50, one thread": f"{candidate.p50_ms:.2f} ms",
    }


def drop(found: Interval | None) -> str:
    """Format a drop of the score with the bounds of its 95 % interval."""
    return "–" if found is None else f"{found.value:.4f} ({found.low:.4f} … {found.high:.4f})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
