"""Metrics' names, as they appear next to every figure."""

from __future__ import annotations

AGREEMENT = "agreement"
FORMAT = "format"
_VS_CEILING = " vs ceiling"
_NAMES = {
    AGREEMENT: "agreement with the prompted teacher",
    FORMAT: "share in the right format",
    "exact": "share of exact answers",
    "fields": "share of equal JSON values",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
}


def vs_ceiling(metric: str) -> str:
    """Return the name of a metric that compares with the ceiling's answers, for lack of references."""
    return metric + _VS_CEILING


def is_vs_ceiling(metric: str) -> bool:
    """Tell whether the metric compares with the ceiling, so that the ceiling has 1 by construction."""
    return metric == AGREEMENT or metric.endswith(_VS_CEILING)


def measures_content(metric: str) -> bool:
    """Tell whether the metric depends on an answer's content."""
    return metric != FORMAT


def named(metric: str) -> str:
    """Return the name for people: chrf → chrF; chrf vs ceiling → chrF against the teacher's answers."""
    short = metric.removesuffix(_VS_CEILING)
    return _NAMES.get(short, short) + " against the teacher's answers" * (short != metric)
