"""Labels that begin one another: their probabilities are those of exclusive events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.teachers.exclusive import exclusive, extensions

TOKENS = 3
answer_sets = st.sets(
    st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8
).map(sorted)


def begins_with(answer: tuple[int, ...], seed: int) -> float:
    """log Pr(text begins with the answer) under a language model whose next token depends on what was said."""
    total = 0.0
    for step, token in enumerate(answer):
        weights = np.random.default_rng([seed, *answer[:step]]).dirichlet(np.full(TOKENS, 0.4))
        total += float(np.log(np.maximum(weights[token], 1e-12)))
    return total


@given(answer_sets, st.integers(0, 1000))
def test_masses_of_any_label_set_sum_to_at_most_one(answers: list[tuple[int, ...]], seed: int) -> None:
    log_probs = np.array([[begins_with(answer, seed) for answer in answers]], np.float32)
    assert np.exp(exclusive(log_probs, answers).astype(np.float64)).sum() <= 1 + 1e-5


@given(answer_sets, st.integers(0, 1000))
def test_masses_of_a_label_and_its_extensions_add_up_to_what_it_was(answers: list[tuple[int, ...]], seed: int) -> None:
    log_probs = np.array([[begins_with(answer, seed) for answer in answers]], np.float32)
    found, before = np.exp(exclusive(log_probs, answers).astype(np.float64)[0]), np.exp(log_probs[0])
    for k, answer in enumerate(answers):
        inside = sum(p for other, p in zip(answers, found, strict=True) if other[: len(answer)] == answer)
        assert inside == pytest.approx(before[k], rel=1e-4, abs=1e-6)


def test_only_the_nearest_extensions_are_taken_off() -> None:
    assert extensions([(1,), (1, 2), (1, 2, 3), (1, 4), (5,)]) == [[1, 3], [2], [], [], []]


def test_the_longer_label_can_win() -> None:
    """P("1") = .8 and P("10") = .6: the text is "10" in six cases of ten, and "1" in two."""
    found = exclusive(np.log(np.array([[0.8, 0.6]], np.float32)), [b"1", b"10"])
    np.testing.assert_allclose(np.exp(found), [[0.2, 0.6]], rtol=1e-5)


def test_a_label_that_is_always_continued_keeps_a_finite_logarithm() -> None:
    assert np.isfinite(exclusive(np.log(np.array([[0.5, 0.5]], np.float32)), [(1,), (1, 2)])).all()
