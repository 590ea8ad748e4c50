"""Labels that make no sense are told: little mass, one label everywhere, a constant that would do better."""

from __future__ import annotations

import numpy as np
import pytest

from distillctl import cautions
from distillctl.metrics import label_checks

NAMES = ["a", "b", "c"]


def log_probs(top: list[int]) -> np.ndarray:
    """Rows whose likeliest labels are these."""
    return np.log(np.where(np.eye(3, dtype=bool)[top], 0.8, 0.1)).astype(np.float32)


def codes(train: list[int], held_out: list[int], references: list[str | None]) -> dict[str, str]:
    with cautions.collected() as found:
        label_checks.check_labels(NAMES, log_probs(train), log_probs(held_out), references)
    return {one["code"]: one["text"] for one in found}


@pytest.mark.parametrize(
    ("held_out", "references", "expected"),
    [
        ([0, 1, 2] * 4, [*"abc"] * 4, set()),
        ([0] * 12, [None] * 12, {"one-label"}),
        ([0] * 12, [*"abc"] * 4, {"one-label"}),
        ([0] * 19 + [1], ["a"] * 19 + ["b"], set()),  # the data are so
        ([1] * 6 + [2] * 6, ["a"] * 6 + [*"bcabca"], {"below-majority"}),
    ],
)
def test_the_ceilings_labels(held_out, references, expected) -> None:
    assert {*codes([0, 1, 2], held_out, references)} == expected


def test_labels_that_no_train_row_has() -> None:
    told = codes([0, 0, 1], [0, 1, 2], [*"abc"])
    assert told == {
        "labels-never-given": "The prompted teacher gives no train row the label c: the student sees no example of it."
    }


def test_a_small_label_mass_is_told_with_what_the_teacher_would_rather_write() -> None:
    with cautions.collected() as found:
        label_checks.check_mass(np.array([0.9, 0.8, 1e-5]), [("r1", "\n", 0.9)])
        assert found == []
        label_checks.check_mass(np.array([1e-5, 2e-5, 0.9]), [("r1", "\n", 0.93)])
    [caution] = found
    assert caution["code"] == "label-mass"
    assert "2e-05 of the teacher's probability in the median" in caution["text"]
    assert "'\\n' (93%, row r1)" in caution["text"]
