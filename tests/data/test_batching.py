"""A plan of batches: every row once, under the budget, and a function of lengths and seed alone."""

from hypothesis import given
from hypothesis import strategies as st

from distillctl.data.batching import by_length, shuffled

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=200)


def _check(batches, sizes, max_rows, max_tokens):
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(sizes[row] for row in batch) <= max_tokens


@given(lengths, st.integers(1, 20), st.integers(1, 300))
def test_by_length_holds_the_budget(sizes, max_rows, max_tokens):
    batches = by_length(sizes, max_rows=max_rows, max_tokens=max_tokens)
    _check(batches, sizes, max_rows, max_tokens)
    assert [sizes[row] for batch in batches for row in batch] == sorted(sizes)


@given(lengths, st.integers(1, 20), st.integers(1, 300), st.integers(0, 9), st.integers(0, 3))
def test_shuffled_holds_the_budget_and_repeats_itself(sizes, max_rows, max_tokens, seed, epoch):
    plan = shuffled(sizes, max_rows=max_rows, max_tokens=max_tokens, seed=seed, epoch=epoch, pool=3)
    _check(plan, sizes, max_rows, max_tokens)
    assert plan == shuffled(sizes, max_rows=max_rows, max_tokens=max_tokens, seed=seed, epoch=epoch, pool=3)


def test_epochs_meet_other_neighbours():
    sizes = list(range(1, 101))
    first, second = (shuffled(sizes, max_rows=8, max_tokens=10**6, seed=0, epoch=e, pool=2) for e in (0, 1))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
