"""How often the values of answers in JSON are right, key by key: as the teacher has them, and as the data have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from distillctl.data import field_references
from distillctl.metrics import fields
from distillctl.metrics.statistics import mean_interval, recovered_interval
from distillctl.tasks.generate.facts import Corpus, RightShare

_CEILING, _FLOOR = "ceiling", "floor"
Answers = Mapping[str, list[str]]
"""Arm → its answers to the eval rows; ceiling and floor are among them."""


def equal(answers_of: Answers) -> dict[str, Corpus]:
    """Return key of the teacher's JSON → arm → share of equal values, over the rows where the teacher has one."""
    shares = {}
    for key in fields.keys(answers_of[_CEILING]):
        teacher_values = fields.values(answers_of[_CEILING], key)
        rows = [row for row, value in enumerate(teacher_values) if value is not None]
        shares[key] = {
            arm: float(np.mean([found_values[row] == teacher_values[row] for row in rows]))
            for arm, texts in answers_of.items()
            for found_values in [fields.values(texts, key)]
        }
    return shares


def right(references: Mapping[str, Sequence[str | None]], answers_of: Answers) -> dict[str, dict[str, RightShare]]:
    """Return key → arm → share of right values on the rows where the data have one.

    references: key → the right value of each row; None where the data have none.
    """
    return {key: _right(key, values, answers_of) for key, values in references.items()}


def _right(key: str, values: Sequence[str | None], answers_of: Answers) -> dict[str, RightShare]:
    rows = [row for row, value in enumerate(values) if value is not None]
    if not rows:
        return {}
    scores = {}
    for arm, texts in answers_of.items():
        answered = [None if value is None else _text(value) for value in fields.values(texts, key)]
        scores[arm] = np.array([answered[row] == values[row] for row in rows], dtype=np.float64)
    shares = {}
    for arm, part in scores.items():
        recovered = (
            recovered_interval(part, scores[_FLOOR], scores[_CEILING]) if arm not in (_FLOOR, _CEILING) else None
        )
        shares[arm] = RightShare(**mean_interval(part).given, n=len(rows), recovered=recovered)
    return shares


def _text(value: str) -> str | None:
    return field_references.text_of(json.loads(value))
