"""Laws of the intervals, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distillctl.metrics.statistics import difference_interval, mean_interval, recovered_interval
from tests.benchmarks import coverage

scores = arrays(float, st.integers(2, 60), elements=st.sampled_from([0.0, 1.0]) | st.floats(0, 1))
shares = arrays(float, st.integers(1, 60), elements=st.sampled_from([0.0, 1.0]))
paired = st.integers(2, 60).flatmap(lambda n: arrays(float, (3, n), elements=st.sampled_from([0.0, 1.0])))
few = settings(max_examples=100, deadline=None)


def _rows(*shares: float, n: int = 1000) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [(generator.random(n) < share).astype(float) for share in shares]


@few
@given(scores)
def test_the_interval_holds_the_value_stays_in_range_and_has_a_width(values: np.ndarray) -> None:
    found = mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    assert -1e-9 <= found.low <= found.value + 1e-9 <= found.high + 2e-9 <= 1 + 3e-9
    assert found.high > found.low or np.ptp(values) ** 2 < np.finfo(float).tiny  # such squares round to nothing


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_rows_that_all_score_the_same_are_no_certainty(value: float) -> None:
    """As many rows as were measured could all have missed a kind that has 3.7 / N of them (Clopper–Pearson)."""
    for n in (1, 20, 1000):
        found, unseen = mean_interval(np.full(n, value)), 1 - 0.025 ** (1 / n)
        expected = [value, value * (1 - unseen), value + (1 - value) * unseen]
        assert [found.value, found.low, found.high] == pytest.approx(expected)


@few
@given(shares)
def test_a_share_is_the_complement_of_the_other(values: np.ndarray) -> None:
    right, wrong = mean_interval(values), mean_interval(1 - values)
    assert [right.low, right.high] == pytest.approx([1 - wrong.high, 1 - wrong.low])


@few
@given(paired)
def test_a_difference_changes_sign_with_its_sides(columns: np.ndarray) -> None:
    a, b = columns[:2]
    there, back = (difference_interval(*pair) for pair in ((a, b), (b, a)))
    assert [there.value, there.low, there.high] == pytest.approx([-back.value, -back.high, -back.low], abs=1e-12)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert there.high > there.low


def test_equal_columns_differ_by_nothing_but_what_so_few_rows_can_miss() -> None:
    widths = []
    for n in (20, 200, 1000):
        (values,) = _rows(0.6, n=n)
        same = difference_interval(values, values)
        assert same.value == 0
        assert same.low == -same.high
        widths.append(same.high)
    assert widths == pytest.approx([0.126, 0.0137, 0.0028], abs=1e-3)


def test_recovered_is_one_for_the_ceiling_and_zero_for_the_floor() -> None:
    floor, ceiling = _rows(0.3, 0.7)
    for student, share in ((ceiling, 1.0), (floor, 0.0), ((ceiling + floor) / 2, 0.5)):
        found = recovered_interval(student, floor, ceiling)
        assert found is not None
        assert found.value == pytest.approx(share)
        assert share - 0.08 < found.low < share < found.high < share + 0.08


def test_nothing_is_recovered_where_there_is_no_gap() -> None:
    student, floor, ceiling = _rows(0.5, 0.5, 0.52, n=200)
    assert recovered_interval(student, floor, ceiling) is None
    assert recovered_interval(student, floor, floor) is None
    assert recovered_interval(student, np.ones(200), np.zeros(200)) is None


@few
@given(paired)
def test_recovered_is_none_or_an_interval_around_its_value(columns: np.ndarray) -> None:
    student, floor, ceiling = columns
    found = recovered_interval(student, floor, ceiling)
    if difference_interval(ceiling, floor).low <= 0:
        assert found is None
        return
    assert found is not None
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert found.low < found.value < found.high


def test_the_order_of_rows_does_not_matter() -> None:
    student, floor, ceiling = _rows(0.65, 0.3, 0.7)
    order = np.random.default_rng(2).permutation(len(student))
    found, shuffled = (
        recovered_interval(*(column[rows] for column in (student, floor, ceiling)))
        for rows in (np.arange(len(order)), order)
    )
    assert found is not None
    assert shuffled is not None
    assert [shuffled.value, shuffled.low, shuffled.high] == pytest.approx([found.value, found.low, found.high])


def test_columns_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        difference_interval(np.zeros(3), np.zeros(4))


# ── coverage ─────────────────────────────────────────────────────────────────────────────────────

ABOVE = {(20, 0.95), (20, 0.99), (20, 0.995), (60, 0.95), (60, 0.99), (60, 0.995), (200, 0.995)}
"""Where fewer than five rows are wrong in most samples: the exact interval is wider than it has to be."""


@pytest.mark.parametrize("rows", coverage.ROWS)
@pytest.mark.parametrize("share", coverage.SHARES)
def test_a_shares_interval_holds_the_truth_as_often_as_it_says(rows: int, share: float) -> None:
    found = coverage.shares(rows, share)
    assert 0.93 <= found <= (0.999 if (rows, share) in ABOVE else 0.97)


def test_no_share_is_held_much_less_often_than_said() -> None:
    assert min(coverage.shares(40, share) for share in np.linspace(0.02, 0.98, 25)) > 0.92


@pytest.mark.parametrize("arms", coverage.ARMS)
@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize("graded", [False, True])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(rows: int, arms: tuple[float, ...], graded: bool) -> None:
    """400 samples; a coverage of .95 is found below .915 in one of a thousand such tests."""
    found = coverage.paired(rows, arms, 400, graded=graded)
    least = 0.88 if (rows, graded) == (20, True) else 0.91  # the mean of 20 rows that are nearly all perfect: .92
    assert all(value is None or value >= least for value in found.values()), found
    if rows == 200:
        assert found["difference"] < 0.99


def test_the_old_way_would_fail() -> None:
    """A percentile bootstrap of 20 rows of which 95 % are right holds that share in 64 % of the cases."""
    generator, held = np.random.default_rng(0), []
    for _ in range(400):
        rows = generator.random(20) < 0.95
        low, high = np.percentile(rows[generator.integers(0, 20, (500, 20))].mean(1), [2.5, 97.5])
        held.append(low <= 0.95 <= high)
    assert np.mean(held) < 0.75
