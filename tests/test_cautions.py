"""Cautions: shown once, kept in order, and shown again with a stage that is fresh."""

from __future__ import annotations

import pytest

from distillctl import cautions
from distillctl.run_dir.facts import Caution


def test_cautions_are_shown_and_kept_once_in_the_order_they_came(capsys: pytest.CaptureFixture[str]) -> None:
    with cautions.collected() as found:
        for code in ("b", "a", "b"):
            cautions.add(code, f"Look at {code}.")
    assert found == [{"code": "b", "text": "Look at b."}, {"code": "a", "text": "Look at a."}]
    assert capsys.readouterr().err == "caution: Look at b.\ncaution: Look at a.\n"


def test_outside_a_stage_a_caution_is_shown_and_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with cautions.collected() as found:
        pass
    cautions.add("late", "Too late.")
    assert (found, capsys.readouterr().err) == ([], "caution: Too late.\n")


def test_cautions_of_a_fresh_stage_are_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    cautions.repeat([Caution(code="a", text="Look at a.")])
    assert capsys.readouterr().err == "caution: Look at a.\n"
