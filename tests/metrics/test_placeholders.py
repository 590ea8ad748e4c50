"""Placeholders are found in each of their forms, and compared as multisets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.metrics import placeholders
from distillctl.metrics.placeholders import Difference, difference, find

FORMS = (
    "%s", "%d", "%%", "%(name)s", "%1$s", "%-10.2f", "%@", "{}", "{0}", "{name}", "{0:>3}", "{x!r}", "${total}",
    "{{ total }}", "<b>", "</b>", "<br/>", '<a href="{0}" class="x">', "&amp;", "&#39;", "&#xA0;",
)  # fmt: skip
pieces = st.lists(st.sampled_from([*FORMS, "word", "100 %", "R&D", "a < b", "Tom & Jerry"]), max_size=8)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_found(form: str) -> None:
    assert find(f"before {form} after") == [form]


@pytest.mark.parametrize("text", ["&File", "Sav&e as", "R&emove"])
def test_the_mark_of_a_menus_key_is_found_wherever_it_stands(text: str) -> None:
    assert find(text) == ["&"]


@pytest.mark.parametrize(
    "text",
    ["50 % of them", "R&D", "Q&A", "Tom & Jerry", '{"mood":"good"}', "<no help available>", "5 > 3"],
)
def test_text_that_only_looks_like_it_is_none(text: str) -> None:
    assert find(text) == []


@given(pieces, st.randoms())
def test_the_order_may_change(words: list[str], random: object) -> None:
    shuffled = sorted(words, key=lambda word: random.random())  # type: ignore[attr-defined]
    assert difference(" ".join(words), " ".join(shuffled)) is None


@given(pieces, st.sampled_from(FORMS))
def test_one_more_is_extra_on_one_side_and_missing_on_the_other(words: list[str], form: str) -> None:
    less, more = " ".join(words), " ".join([*words, form])
    assert difference(less, more) == Difference(missing=[], extra=[form])
    assert difference(more, less) == Difference(missing=[form], extra=[])


def test_a_long_text_takes_no_time() -> None:
    text = "<a " + "x=" * 50_000 + "&" * 50_000 + "%(" * 50_000 + "{" * 50_000
    assert len(placeholders.find(text)) < 50_001
