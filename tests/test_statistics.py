"""Laws of the bootstrap intervals."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from distillctl.metrics.statistics import difference_interval, mean_interval, recovered_interval

scores = arrays(float, st.integers(2, 60), elements=st.sampled_from([0.0, 1.0]))
paired = st.integers(2, 60).flatmap(lambda n: arrays(float, (3, n), elements=st.sampled_from([0.0, 1.0])))
few = settings(max_examples=40, deadline=None)


def _rows(*shares: float, n: int = 1000) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [(generator.random(n) < share).astype(float) for share in shares]


@few
@given(scores)
def test_the_interval_holds_the_value_and_stays_in_range(values: np.ndarray) -> None:
    found = mean_interval(values, resamples=400)
    assert found.value == pytest.approx(values.mean())
    assert -1e-9 <= found.low <= found.value + 1e-9 <= found.high + 2e-9 <= 1 + 3e-9


@few
@given(st.floats(-1e3, 1e3), st.integers(1, 50))
def test_constant_data_have_no_width(value: float, n: int) -> None:
    found = mean_interval(np.full(n, value), resamples=50)
    assert [found.value, found.low, found.high] == pytest.approx([value] * 3)


@few
@given(paired)
def test_a_difference_changes_sign_with_its_sides(columns: np.ndarray) -> None:
    a, b = columns[:2]
    there, back = (difference_interval(*pair, resamples=200) for pair in ((a, b), (b, a)))
    assert [there.value, there.low, there.high] == pytest.approx([-back.value, -back.high, -back.low], abs=1e-12)


def test_pairing_makes_equal_columns_equal() -> None:
    (values,) = _rows(0.6)
    same = difference_interval(values, values)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_recovered_is_one_for_the_ceiling_and_zero_for_the_floor() -> None:
    floor, ceiling = _rows(0.3, 0.7)
    for student, share in ((ceiling, 1.0), (floor, 0.0), ((ceiling + floor) / 2, 0.5)):
        found = recovered_interval(student, floor, ceiling)
        assert found is not None
        assert [found.value, found.low, found.high] == pytest.approx([share] * 3)


def test_nothing_is_recovered_where_there_is_no_gap() -> None:
    student, floor, ceiling = _rows(0.5, 0.5, 0.52, n=200)
    assert recovered_interval(student, floor, ceiling) is None
    assert recovered_interval(student, floor, floor) is None
    assert recovered_interval(student, np.ones(200), np.zeros(200)) is None


@few
@given(paired)
def test_recovered_is_finite_or_none(columns: np.ndarray) -> None:
    found = recovered_interval(*columns, resamples=200)
    assert found is None or (np.isfinite([found.value, found.low, found.high]).all() and found.low <= found.high)


def test_the_order_of_rows_hardly_matters_and_the_seed_decides() -> None:
    student, floor, ceiling = _rows(0.65, 0.3, 0.7)
    order = np.random.default_rng(2).permutation(len(student))
    found = recovered_interval(student, floor, ceiling)
    shuffled = recovered_interval(student[order], floor[order], ceiling[order])
    assert found is not None
    assert shuffled is not None
    assert shuffled.value == pytest.approx(found.value)
    assert [shuffled.low, shuffled.high] == pytest.approx([found.low, found.high], abs=0.02)
    assert recovered_interval(student, floor, ceiling) == found
    assert recovered_interval(student, floor, ceiling, seed=1) != found


def test_it_is_the_bootstrap_of_scipy() -> None:
    student, floor, ceiling = _rows(0.65, 0.3, 0.7)
    found = recovered_interval(student, floor, ceiling)
    theirs = bootstrap(
        (student, floor, ceiling),
        lambda s, f, c, axis: (s.mean(axis) - f.mean(axis)) / (c.mean(axis) - f.mean(axis)),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=7,
    ).confidence_interval
    assert found is not None
    assert [found.low, found.high] == pytest.approx([theirs.low, theirs.high], abs=0.015)


def test_memory_does_not_grow_with_resamples() -> None:
    (values,) = _rows(0.5, n=20_000)
    tracemalloc.start()
    mean_interval(values, resamples=500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # the whole index matrix alone would take 80 MB


def test_columns_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        difference_interval(np.zeros(3), np.zeros(4))
