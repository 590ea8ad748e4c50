"""What a user notices in an answer at once: broken placeholders, no answer, a loop, a wrong length or language."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from distillctl import cautions
from distillctl.metrics import language, placeholders
from distillctl.metrics.statistics import mean_interval
from distillctl.recipe import Languages
from distillctl.tasks.generate.facts import BrokenPlaceholders, Share, TextChecks

_LOOP = re.compile(r"(\b\w.{0,60}?\W)\1{2,}|(\w{2,12}?)\2{3,}", re.DOTALL)
"""Words three times in a row, or a few letters four times."""

MAY_BE_WORSE = 0.01
"""Share of the rows that may have a fault in a model's answers, and not in the teacher's, without a caution."""


def loops(text: str) -> bool:
    """Tell whether the text repeats itself, as a small model does that finds no end."""
    return _LOOP.search(text.casefold() + " ") is not None


def check(
    inputs: Sequence[str], answers: Sequence[str], targets: Sequence[str], languages: Languages | None = None
) -> TextChecks:
    """Check the answers of at least one row. targets: the references, or the teacher's answers for lack of them."""
    has_some = [bool(placeholders.find(text)) for text in inputs]
    differs = [placeholders.difference(text, answer) is not None for text, answer in zip(inputs, answers, strict=True)]
    kept = np.array([not other for some, other in zip(has_some, differs, strict=True) if some], dtype=np.float64)
    looping = [loops(answer) and not loops(target) for answer, target in zip(answers, targets, strict=True)]
    length = sum(map(len, targets))
    untranslated = _untranslated(answers, targets, languages) if languages else []
    return TextChecks(
        placeholders=_share(kept),
        invented=sum(other for some, other in zip(has_some, differs, strict=True) if not some),
        empty=float(np.mean([not answer.strip() for answer in answers])),
        looping=float(np.mean(looping)),
        length_ratio=sum(map(len, answers)) / length if length else None,
        untranslated=_share(np.array(untranslated, dtype=np.float64)),
    )


def broken(inputs: Sequence[str], answers: Sequence[str]) -> list[BrokenPlaceholders]:
    """Return the answers whose placeholders are not the input's."""
    return [
        BrokenPlaceholders(input=text, answer=answer, missing=found.missing, extra=found.extra)
        for text, answer in zip(inputs, answers, strict=True)
        if (found := placeholders.difference(text, answer))
    ]


def review(arm: str, inputs: Sequence[str], answers: Sequence[str], ceiling: Sequence[str]) -> None:
    """Caution about each fault that clearly more of an arm's answers have than of the ceiling's to the same rows."""
    faults: tuple[tuple[str, str, Callable[[Sequence[str]], int]], ...] = (
        ("placeholders-broken", "have other placeholders than their inputs", lambda texts: len(broken(inputs, texts))),
        ("answers-looping", "repeat themselves without end", lambda texts: sum(map(loops, texts))),
        ("answers-empty", "are empty", lambda texts: sum(not text.strip() for text in texts)),
    )
    for code, finding, count in faults:
        rows, teachers = count(answers), count(ceiling)
        if rows - teachers > MAY_BE_WORSE * len(inputs):
            cautions.add(
                code,
                f"The {arm} model's answers to {rows:,} of {len(inputs):,} held-out rows {finding}, the prompted "
                f"teacher's to {teachers:,}.",
            )


def _untranslated(answers: Sequence[str], targets: Sequence[str], languages: Languages) -> list[bool]:
    """Return for each answer that is long enough whether it is in the input's language. Rows whose target is not
    recognised either are left out."""
    pair = (languages.input, languages.answer)
    judged = [
        language.likelier(answer, *pair)
        for answer, target in zip(answers, targets, strict=True)
        if language.likelier(target, *pair) == languages.answer
    ]
    return [found == languages.input for found in judged if found is not None]


def _share(rows: np.ndarray) -> Share | None:
    """Return the mean of rows of 0 and 1 with its interval; None of none."""
    return Share(**mean_interval(rows).given, n=len(rows)) if len(rows) else None
