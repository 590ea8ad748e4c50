"""Controls: what simple methods make of the teacher's answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from distillctl import cautions
from distillctl.data import controls_table
from distillctl.errors import UpstreamError
from distillctl.metrics import doubts
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace
from distillctl.tasks.classify import controls as label_controls
from distillctl.tasks.generate import controls as text_controls

PLACES, PEOPLE = ("where is the river", "which city lies there"), ("who wrote the book", "whose idea was that")
TRAIN = [f"{begin} {end}" for begin in PLACES + PEOPLE for end in ("now", "then", "today", "and why")]


def soft_labels(sure: float = 3.0) -> np.ndarray:
    """Of the places the first label, of the people the second; the third is nobody's."""
    one_hot = np.repeat(np.eye(3)[[0, 1]], 8, axis=0)
    return log_softmax(sure * one_hot, axis=-1).astype(np.float32)


def test_a_bag_of_words_learns_what_words_tell() -> None:
    held_out = ["where is the city", "who had that idea", "which river is there", "whose book"]
    found = label_controls.answers(TRAIN, soft_labels(), held_out, ["place", "person", "nothing"])
    assert found["bag_of_words"] == ["place", "person", "place", "person"]
    assert found["majority"] == ["place"] * 4


def test_soft_labels_are_what_is_learnt_and_not_the_first_choices_alone() -> None:
    """All rows have the first label on top; only how surely tells the words apart."""
    sure, unsure = np.log([0.98, 0.01, 0.01]), np.log([0.4, 0.35, 0.25])
    said = np.array([sure, unsure] * 50, np.float32)
    found = label_controls.bag_of_words(["plain", "odd"] * 50, said, ["plain", "odd"])
    assert found.tolist() == [0, 0]


@pytest.mark.parametrize("train", [["", "", ""], ["?", "?", "?"]])
def test_texts_without_words_and_labels_without_a_choice_leave_the_majority(train: list[str]) -> None:
    said = np.log(np.array([[0.1, 0.9]] * 3, np.float32))
    assert label_controls.bag_of_words(train, said, ["a question", ""]).tolist() == [1, 1]
    certain = np.log(np.array([[1e-6, 1.0]] * 3, np.float32))
    assert label_controls.bag_of_words(["one", "two", "three"], certain, ["one"]).tolist() == [1]


def test_the_nearest_row_is_the_same_one_where_it_is_there() -> None:
    assert text_controls.nearest_row(TRAIN, TRAIN) == list(range(len(TRAIN)))
    said = [f"answer {row}" for row in range(len(TRAIN) - 2)] + ["answer 3"] * 2
    found = text_controls.answers(TRAIN, said, ["who wrote the other book today?", "ζ"])
    assert found["nearest_row"] == ["answer 10", "answer 0"]
    assert found["most_frequent"] == ["answer 3"] * 2


def test_more_rows_than_are_compared_at_once_are_all_answered() -> None:
    asked = [TRAIN[row % len(TRAIN)] for row in range(150)]
    assert text_controls.nearest_row(TRAIN, asked) == [row % len(TRAIN) for row in range(150)]


def test_answers_come_back_in_any_order_and_a_missing_control_is_told(tmp_path) -> None:
    workspace = Workspace(tmp_path)
    controls_table.write(workspace, ["a", "b"], {"majority": ["x", "y"]})
    assert controls_table.read(workspace, ["b", "a"], ["majority"]) == {"majority": ["y", "x"]}
    with pytest.raises(UpstreamError, match="the control bag_of_words lacks answers"):
        controls_table.read(workspace, ["a"], ["majority", "bag_of_words"])


@pytest.mark.parametrize("name", ["majority", "bag_of_words", "most_frequent", "nearest_row", "recovered"])
def test_their_names_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match=f"the name {name} is taken"):
        Recipe.model_validate(
            {
                "name": "taken",
                "task": {"labels": ["a", "b"]},
                "data": {"source": "rows.jsonl"},
                "contexts": {"full": {"template": "{{ input }}"}, "arms": {name: {"template": "{{ input }}"}}},
                "teacher": {"model": "teacher"},
                "student": {"kind": "pretrained", "model": "student"},
            }
        )


def test_controls_that_had_fewer_rows_than_the_student_are_told() -> None:
    with cautions.collected() as found:
        doubts.controls_capped(7, 7)
        assert found == []
        doubts.controls_capped(7, 9)
    assert [one["code"] for one in found] == ["controls-capped"]
    assert "first 7 of 9 train rows" in found[0]["text"]
