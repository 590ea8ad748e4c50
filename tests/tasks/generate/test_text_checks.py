"""What a user notices in an answer at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl import cautions
from distillctl.recipe import Languages
from distillctl.tasks.generate import text_checks
from distillctl.tasks.generate.text_checks import check

INPUTS = ["Delete %(name)s?", "Save", "Open <b>{0}</b>", "Your account was created a moment ago"]
GOOD = ["Supprimer %(name)s ?", "Enregistrer", "Ouvrir <b>{0}</b>", "Votre compte a été créé il y a un instant"]
FRENCH = Languages(input="en", answer="fr")


def test_the_references_themselves_have_nothing_wrong() -> None:
    found = check(INPUTS, GOOD, GOOD, FRENCH)
    assert found.placeholders is not None
    assert found.untranslated is not None
    assert (found.placeholders.value, found.placeholders.n) == (1.0, 2)
    assert (found.untranslated.value, found.untranslated.n) == (0.0, 2)
    assert (found.invented, found.empty, found.looping, found.length_ratio) == (0, 0.0, 0.0, 1.0)


def test_each_fault_counts_where_it_belongs() -> None:
    answers = ["Supprimer ?", "Enregistrer {0}", "Ouvrir <b>{0}</b>", INPUTS[3]]
    found = check(INPUTS, answers, GOOD, FRENCH)
    assert found.placeholders is not None
    assert found.untranslated is not None
    assert (found.placeholders.value, found.invented) == (0.5, 1)
    assert (found.untranslated.value, found.untranslated.n) == (1.0, 1)  # the first answer is too short
    assert found.placeholders.low < 0.5 < found.placeholders.high
    silent = check(INPUTS, ["", " ", "oui " * 20, "la la la la la la la"], GOOD, FRENCH)
    assert (silent.empty, silent.looping) == (0.5, 0.5)


def test_without_placeholders_or_languages_no_share_is_told() -> None:
    found = check(["Save"], ["Enregistrer"], [""])
    assert found.placeholders is found.untranslated is found.length_ratio is None


@pytest.mark.parametrize("text", ["yes yes yes", "to be or to be or to be or to", "hahahahaha", "1, 2, 2, 2, 2"])
def test_a_loop(text: str) -> None:
    assert text_checks.loops(text)


@pytest.mark.parametrize("text", ["", "very very good", "had had", "Mississippi", "........", "1000000", "no. no, no"])
def test_no_loop(text: str) -> None:
    assert not text_checks.loops(text)


def test_a_loop_that_the_reference_has_is_right() -> None:
    assert check(["beep"], ["bip bip bip"], ["bip bip bip"]).looping == 0


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=5))
def test_shares_are_shares_and_the_broken_rows_are_those_counted(rows: list[tuple[str, str]]) -> None:
    inputs, answers = ([*side] for side in zip(*rows, strict=True))
    found, broken = check(inputs, answers, answers), text_checks.broken(inputs, answers)
    kept = 0 if found.placeholders is None else round((1 - found.placeholders.value) * found.placeholders.n)
    assert kept + found.invented == len(broken)
    assert all(row.missing or row.extra for row in broken)


@pytest.mark.parametrize(
    ("answer", "code"),
    [("Supprimer ?", "placeholders-broken"), ("oui oui oui %s ?", "answers-looping"), (" ", "answers-empty")],
)
def test_a_model_with_more_faults_than_the_teacher_is_cautioned_about(answer: str, code: str) -> None:
    inputs = ["Delete %s?"] * 50
    good, bad = ["Supprimer %s ?"] * 50, [answer] * 2 + ["Supprimer %s ?"] * 48
    with cautions.collected() as found:
        text_checks.review("student", inputs, good, bad)
        text_checks.review("student", inputs, bad, bad)
    assert not found
    with cautions.collected() as found:
        text_checks.review("student", inputs, bad, good)
    [caution] = [one for one in found if one["code"] == code]
    assert "The student model's answers to 2 of 50 held-out rows" in caution["text"]
