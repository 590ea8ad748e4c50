"""Shares of right values in answers in JSON."""

from __future__ import annotations

import numpy as np
import pytest

from distillctl.metrics.statistics import recovered_interval
from distillctl.tasks.generate import field_shares


def answers(moods: str) -> list[str]:
    """One answer for each letter: g, b, or any other for an answer that is no JSON."""
    return [{"g": '{"mood": "good"}', "b": '{"mood": "bad"}'}.get(letter, "no JSON") for letter in moods]


REFERENCE = ["good", "bad", "good", "good", None, "bad"] * 10
ANSWERS = {
    "ceiling": answers("gbggbg" * 10),  # 4 of the 5 that the data know
    "floor": answers("xxxxgb" * 10),  # 1 of 5
    "deployed": answers("gbbggb" * 10),  # 4 of 5
}


def test_a_right_value_is_that_of_the_data_on_rows_where_they_have_one() -> None:
    found = field_shares.right({"mood": REFERENCE}, ANSWERS)["mood"]
    assert {arm: share.value for arm, share in found.items()} == {"ceiling": 0.8, "floor": 0.2, "deployed": 0.8}
    assert {(share.n, share.low < share.value < share.high) for share in found.values()} == {(50, True)}


def test_what_is_recovered_compares_the_same_rows_with_floor_and_ceiling() -> None:
    found = field_shares.right({"mood": REFERENCE}, ANSWERS)["mood"]
    ceiling, floor, deployed = (np.tile(rows, 10) for rows in ([1, 1, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 0, 1, 1]))
    expected = recovered_interval(deployed, floor, ceiling)
    assert expected is not None
    assert found["deployed"].recovered == expected
    assert expected.value == pytest.approx(1, abs=0.05)
    assert found["ceiling"].recovered is found["floor"].recovered is None


def test_nothing_is_recovered_where_the_context_makes_no_difference() -> None:
    same = ANSWERS | {"floor": ANSWERS["ceiling"]}
    assert field_shares.right({"mood": REFERENCE}, same)["mood"]["deployed"].recovered is None


def test_a_key_without_any_reference_has_no_shares() -> None:
    assert field_shares.right({"city": [None] * 60}, ANSWERS) == {"city": {}}


def test_equal_values_are_counted_where_the_teacher_has_one() -> None:
    shares = field_shares.equal({"ceiling": answers("gbx"), "floor": answers("ggg"), "deployed": answers("gbb")})
    assert shares["mood"] == {"ceiling": 1.0, "floor": 0.5, "deployed": 1.0}
