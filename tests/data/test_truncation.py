"""The one rule for what is too long: the end of the input is cut, and what stands around it stays whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.data.rows import Example
from distillctl.data.truncation import Length, Limit, cut_to_fit, fit, longest
from distillctl.errors import DataError
from tests.fixtures import tokenizers_of_kind

KINDS = ("byte_level", "byte_fallback", "word_piece", "unigram")
TOKENIZERS = {kind: getattr(tokenizers_of_kind, kind)() for kind in KINDS}
PIECES = st.text(st.sampled_from("abdeklo é.\n漢👍🏽"), max_size=30)
INPUTS = st.lists(
    st.sampled_from(["bazu", "mirot", "dog", "é", "漢字", " ", "\n", "x" * 50, "👩‍👩‍👧", "e\u0301"]), max_size=60
).map(" ".join)


def _limit(who: str, tokens: int) -> Limit:
    return Limit(who, tokens, f"{who} takes {tokens}")


@given(INPUTS, st.integers(0, 200))
def test_what_is_kept_is_a_beginning_that_fits(text, room):
    def fits(part: str) -> bool:
        return len(part.encode()) <= room

    if fits(text):
        return
    kept = cut_to_fit(text, fits)
    if kept is None:
        letter = len(text) - len(text.lstrip()) + 1
        assert not fits(text[:letter])
    else:
        assert text.startswith(kept)
        assert fits(kept)
        assert kept.strip()


def test_a_word_is_not_cut_in_two_but_a_long_run_of_letters_is():
    assert cut_to_fit("the quick brown fox", lambda text: len(text) <= 12) == "the quick"
    assert cut_to_fit("the quick brown fox", lambda text: len(text) <= 15) == "the quick brown"
    assert cut_to_fit("漢字" * 100, lambda text: len(text) <= 15) == "漢字" * 7 + "漢"
    assert cut_to_fit("no " + "x" * 100, lambda text: len(text) <= 60) == "no " + "x" * 57
    assert cut_to_fit("ae\u0301ae\u0301", lambda text: len(text) <= 5) == "ae\u0301a"
    assert cut_to_fit("long", lambda text: False) is None


@given(
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    PIECES,
    PIECES,
    PIECES,
    INPUTS,
    st.integers(8, 60),
    st.integers(8, 60),
)
def test_the_cut_view_fits_and_begins_and_ends_as_the_whole_one(
    teacher, student, before, context, after, text, reads, takes
):
    """Whatever the templates and tokenizers: one input for all views, and each view whole around it."""
    parts = {"full": (context + before, after), "simplified": (before, after)}

    def render(example: Example) -> dict[str, str]:
        return {name: start + example.input + end for name, (start, end) in parts.items()}

    def lengths(views: dict[str, str]) -> list[Length]:
        count = {who: TOKENIZERS[kind] for who, kind in (("the teacher", teacher), ("the student", student))}
        return [
            *(
                Length(len(count["the teacher"](v).input_ids), _limit("the teacher", reads), n)
                for n, v in views.items()
            ),
            Length(
                len(count["the student"](views["simplified"]).input_ids), _limit("the student", takes), "simplified"
            ),
        ]

    example = Example("r", text, "ref")
    too_long = longest(lengths(render(example)))
    try:
        shorter, views = fit(example, render, lengths)
    except DataError:
        letter = replace(example, input=text[: len(text) - len(text.lstrip()) + 1])
        assert longest(lengths(render(letter))) is not None
        return
    assert longest(lengths(views)) is None
    assert text.startswith(shorter.input)
    assert (shorter.id, shorter.reference) == ("r", "ref")
    assert (shorter is example) == (too_long is None)
    for name, (start, end) in parts.items():
        assert views[name] == start + shorter.input + end


def test_the_error_names_row_length_and_limit():
    one = Length(90, _limit("the student", 64), "contexts.simplified", "simplified view")
    told = str(one.error("r7", others=3))
    assert "row r7: the simplified view has 90 tokens, the student takes 64 (3 more rows are too long)" in told
    with pytest.raises(DataError, match="cutting its input does not help"):
        fit(Example("r", "text"), lambda example: example, lambda example: [one])
