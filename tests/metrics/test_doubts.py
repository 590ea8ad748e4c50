"""When figures are doubted: collapse, a weak student, controls that are as good, contexts that do nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl import cautions
from distillctl.metrics import comparison, doubts
from distillctl.run_dir.facts import Interval

GENERATOR = np.random.default_rng(0)


def added(call: Callable[[], None]) -> list[tuple[str, str]]:
    with cautions.collected() as found:
        call()
    return [(one["code"], one["text"]) for one in found]


def codes(call: Callable[[], None]) -> list[str]:
    return [code for code, _ in added(call)]


# ── collapse ─────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.randoms())
def test_answers_that_vary_as_the_teachers_do_never_collapse(teacher: list[str], random: object) -> None:
    shuffled = list(teacher)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert codes(lambda: doubts.collapse("student", teacher, teacher)) == []
    assert codes(lambda: doubts.collapse("student", shuffled, teacher)) == []


def test_one_answer_on_most_rows_is_a_collapse_unless_the_teacher_gives_it_too() -> None:
    teacher = ["good"] * 120 + ["bad"] * 60 + ["mixed"] * 20
    assert codes(lambda: doubts.collapse("student", ["good"] * 198 + ["bad"] * 2, teacher)) == ["collapse"]
    assert codes(lambda: doubts.collapse("student", ["good"] * 130 + ["bad"] * 70, teacher)) == []
    assert codes(lambda: doubts.collapse("student", ["good"] * 200, ["good"] * 198 + ["bad"] * 2)) == []


def test_far_fewer_distinct_answers_are_a_collapse() -> None:
    teacher = [f"answer {row}" for row in range(60)]
    [(code, text)] = added(lambda: doubts.collapse("deployed", [f"answer {row % 6}" for row in range(60)], teacher))
    assert code == "collapse"
    assert "6 different on 60 rows, where the prompted teacher's are 60" in text
    assert "deployed" in text
    assert codes(lambda: doubts.collapse("deployed", [f"other {row % 45}" for row in range(60)], teacher)) == []


def test_a_key_of_json_collapses_though_the_texts_vary() -> None:
    """As the tickets did: other things are named in every row, and the mood is always good."""
    moods = GENERATOR.permutation(["good"] * 110 + ["bad"] * 70 + ["mixed"] * 20)
    teacher = [f'{{"about": "thing {row}", "mood": "{mood}"}}' for row, mood in enumerate(moods)]
    student = [f'{{"about": "part {row}", "mood": "{"bad" if row < 2 else "good"}"}}' for row in range(200)]
    [(code, text)] = added(lambda: doubts.collapse("student", student, teacher))
    assert code == "collapse"
    assert "key 'mood'" in text
    assert '"good" on 198 rows' in text
    [(_, text)] = added(lambda: doubts.collapse("student", [*student[:20], *["no JSON"] * 180], teacher))[-1:]
    assert "nothing on 180 rows" in text


def test_of_few_rows_nothing_is_said() -> None:
    assert codes(lambda: doubts.collapse("student", ["a"] * 9, list("abcdefghi"))) == []


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def scores(student: float, control: float = 0.2, rows: int = 400) -> dict[str, np.ndarray]:
    """Arms that are right on the first so many rows."""
    shares = {"ceiling": 0.9, "floor": 0.2, "student": student, "majority": control}
    return {arm: (np.arange(rows) < share * rows).astype(float) for arm, share in shares.items()}


@pytest.mark.parametrize(
    ("student", "code"), [(0.2, ["no-better-than-floor"]), (0.5, ["weak-student"]), (0.75, []), (0.95, [])]
)
def test_a_student_far_below_the_ceiling_is_weak(student: float, code: list[str]) -> None:
    assert codes(lambda: doubts.weak("student", scores(student), "accuracy")) == code
    assert codes(lambda: doubts.weak("student", scores(student), "format")) == [], "a format says nothing"


def test_a_control_that_may_be_as_good_is_named() -> None:
    controls = {"majority": "always answering the most frequent label"}
    [(code, text)] = added(lambda: doubts.against_controls("student", scores(0.5, 0.5), controls, "agreement"))
    assert code == "no-better-than-control"
    assert "not clearly better than always answering the most frequent label" in text
    assert "agreement with the prompted teacher 0.500 against 0.500" in text
    assert codes(lambda: doubts.against_controls("student", scores(0.5, 0.3), controls, "accuracy")) == []


# ── contexts ─────────────────────────────────────────────────────────────────────────────────────


def told_of(changed: int, kl: float, gap: tuple[float, float, float], metric: str) -> list[str]:
    effects = {"floor": comparison.context_effect(np.arange(200) < changed, kl)}
    gaps = {"floor": Interval(**dict(zip(("value", "low", "high"), gap, strict=True)))}
    return codes(lambda: comparison.warn(effects, gaps, metric))


@pytest.mark.parametrize(
    ("changed", "kl", "gap", "metric", "code"),
    [
        (0, 0.0, (0.0, 0.0, 0.0), "agreement", ["context-does-nothing"]),
        (1, 0.001, (0.005, 0.0, 0.02), "chrf vs ceiling", ["context-does-nothing"]),
        (0, 0.3, (0.0, 0.0, 0.0), "agreement", []),  # its probabilities can be learnt
        (80, 0.3, (0.4, 0.3, 0.5), "agreement", []),
        (80, 0.3, (0.4, 0.3, 0.5), "accuracy", []),
        (80, 0.3, (0.01, -0.05, 0.07), "accuracy", ["context-does-not-help"]),
        (80, 0.3, (-0.2, -0.3, -0.1), "accuracy", ["context-harms"]),
    ],
)
def test_what_a_context_does_is_read_from_the_answers_it_changes(changed, kl, gap, metric, code) -> None:
    assert told_of(changed, kl, gap, metric) == code


def test_without_references_it_is_said_what_the_arms_are_compared_with() -> None:
    assert codes(lambda: comparison.warn_references(["a", "b"])) == []
    assert codes(lambda: comparison.warn_references([None, None])) == []  # data.split_checks has told it
    [(code, text)] = added(lambda: comparison.warn_references(["a", None]))
    assert "1 by construction" in text
    assert code == "references-incomplete"
