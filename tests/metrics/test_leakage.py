"""Responses that refer to what the student cannot see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.metrics.leakage import Span, spans

CONTEXT = "Refunds are paid within fourteen days of the return. Answer in one short sentence, please.\nQuestion: "
QUESTION = "When do I get my money back for the blue lamp?"


def found(response: str, *others: str, context: str = CONTEXT, visible: str = QUESTION) -> list[tuple[str, str]]:
    rows = [response, *others]
    (first, *_) = spans(rows, [context + visible] * len(rows), [visible] * len(rows))
    return [(response[span.start : span.end], span.why) for span in first]


def test_words_copied_from_the_context_are_one_span_as_long_as_it_goes() -> None:
    said = "You get it WITHIN Fourteen  days, of the return: promised."
    assert found(said) == [("WITHIN Fourteen  days, of the return", "copied")]


def test_two_copied_runs_are_two_spans() -> None:
    said = "Refunds are paid within a month; answer in one short line."
    assert found(said) == [("Refunds are paid within", "copied"), ("answer in one short", "copied")]


def test_three_words_in_common_are_chance() -> None:
    assert found("It is within fourteen days.") == []


def test_values_of_json_are_not_one_run_of_words() -> None:
    shown = '{"about": "lamp", "mood": "bad", "action": "refund"}'
    assert found(shown, context=CONTEXT + shown) == []
    said = '{"about": "refunds are paid within", "mood": "bad"}'
    assert found(said) == [("refunds are paid within", "copied")]
    quoted = 'It says "Refunds are paid", within fourteen days.'
    assert found(quoted) == [('Refunds are paid", within fourteen days', "copied")]


def test_words_that_the_student_sees_too_are_its_own_to_say() -> None:
    said = "You get my money back for the blue lamp soon."
    assert found(said) == []
    assert found(said, context=CONTEXT + QUESTION, visible="Blue lamp.") == [
        ("get my money back for the blue lamp", "copied")
    ]


def test_a_word_of_the_context_is_matched_whole() -> None:
    assert found("Prefunds are paid within") == []


def test_what_most_responses_share_is_the_format_asked_for() -> None:
    form = "Answer in one short sentence: {}"
    assert found(form.format("soon"), form.format("never"), "Tomorrow.") == []
    assert found(form.format("soon"), "Never.", "Tomorrow.") == [("Answer in one short sentence", "copied")]
    assert found(form.format("soon")) == [("Answer in one short sentence", "copied")]  # one response is no habit


@pytest.mark.parametrize(
    "phrase",
    [
        "As stated above", "as already mentioned before", "above mentioned", "mentioned in the provided context",
        "According to the documents", "based on the given instructions", "previous examples",
        "instructions above", "system prompt", "as instructed", "I was told",
    ],
)  # fmt: skip
def test_phrases_that_point_at_a_context(phrase: str) -> None:
    assert found(f"Well, {phrase}, it works.") == [(phrase, "phrase")]
    assert found(f"Well, {phrase}, it works.", visible=f"{phrase}?") == []


@pytest.mark.parametrize(
    "said",
    ["The lamp hangs above the table.", "For example, red.", "As I see it, yes.", "Give it a context.", "Told you so."],
)
def test_phrases_that_do_not(said: str) -> None:
    assert found(said) == []


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_every_span_lies_inside_its_response_and_in_order(response: str, context: str, visible: str) -> None:
    (one,) = spans([response], [context], [visible], words=1)
    assert all(0 <= span.start < span.end <= len(response) for span in one)
    assert one == sorted(one, key=lambda span: span.start)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=4, max_size=12))
def test_a_response_that_is_the_context_is_copied_whole(words: list[str]) -> None:
    text = " ".join(words)
    assert spans([text], [text], [""]) == [[Span(0, len(text), "copied")]]
    assert spans([text], [text], [text]) == [[]]
    assert spans([text], [""], [""]) == [[]]


def test_empty_texts_and_no_rows() -> None:
    assert spans([], [], []) == []
    assert spans(["", ""], ["", CONTEXT], ["", ""]) == [[], []]
