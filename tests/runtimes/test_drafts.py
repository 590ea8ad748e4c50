"""Speculative decoding: whatever is guessed, the answer is the greedy one, in fewer runs where guesses are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.runtimes.drafts import FILE, LONGEST, MOST, START, Drafts, greedy

VOCABULARY = 6
STOP = VOCABULARY - 1
tokens = st.integers(0, VOCABULARY - 1)
answers = st.lists(st.lists(tokens, max_size=12), max_size=30)


class Model:
    """Logits that depend on all tokens so far, and a memory that holds rejected tokens until they are overwritten."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.runs = 0

    def __call__(self, ids: list[int], length: int) -> np.ndarray:
        assert length <= len(self.memory)
        self.memory[length:] = ids
        self.runs += 1
        return np.array([self._logits(self.memory[: length + place + 1]) for place in range(len(ids))])

    @staticmethod
    def _logits(line: list[int]) -> np.ndarray:
        return np.random.default_rng(abs(hash(tuple(line[-3:])))).random(VOCABULARY)


def _plain(first: list[int], most: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < most and (not answer or answer[-1] != STOP):
        answer.append(int(Model._logits([*first, *answer]).argmax()))
    return answer


@given(st.lists(tokens, min_size=1, max_size=5), st.integers(1, 20), answers)
def test_the_answer_is_the_greedy_one_whatever_is_guessed(first, most, learned):
    model, drafts = Model(), Drafts.learn(learned, {STOP})
    answer = list(greedy(model, first, most, {STOP}, drafts))
    assert answer == _plain(first, most)
    assert model.runs == drafts.runs(answer, most) <= len(answer)


@given(st.lists(tokens, min_size=1, max_size=5), st.integers(1, 20))
def test_what_was_learned_from_the_answer_itself_takes_one_run_for_a_dozen_tokens(first, most):
    answer, model = _plain(first, most), Model()
    drafts = Drafts.learn([answer, answer], {STOP})
    assert list(greedy(model, first, most, {STOP}, drafts)) == answer
    if len({tuple(answer[i : i + LONGEST]) for i in range(len(answer))}) == len(answer):  # no context twice
        assert model.runs <= -(-len(answer) // MOST)


@given(answers)
def test_no_guess_is_a_stop_id_or_longer_than_asked(learned):
    drafts = Drafts.learn(learned, {STOP})
    for answer in ([], *learned):
        for most in (0, 1, 3, 99):
            guess = drafts.after(answer, most)
            assert STOP not in guess
            assert len(guess) <= min(most, MOST)


def test_a_form_is_learned_and_what_varies_is_not():
    form = [[1, 2, value, 3, 4, STOP] for value in (7, 8, 9) for _ in range(10)]
    drafts = Drafts.learn(form, {STOP})
    assert drafts.after([], 9) == [1, 2]
    assert drafts.after([1, 2, 8], 9) == [3, 4]
    assert drafts.after([1, 2, 8, 3, 4], 9) == []
    assert drafts.usual == {(START,): 1, (1,): 2, (7,): 3, (8,): 3, (9,): 3, (3,): 4}


def test_a_longer_context_is_kept_only_where_it_says_something_else():
    drafts = Drafts.learn([[1, 2, 5]] * 10 + [[3, 2, 4]] * 11, ())
    assert drafts.usual[2,] == 4
    assert drafts.usual[1, 2] == 5
    assert (3, 2) not in drafts.usual


def test_rare_contexts_teach_nothing():
    rare = [[number, number + 1] for number in range(1000)]
    assert not Drafts.learn(rare, ()).usual


@given(learned=answers)
def test_a_table_survives_its_file_and_without_a_file_nothing_is_guessed(learned, tmp_path_factory):
    folder, drafts = tmp_path_factory.mktemp("drafts"), Drafts.learn(learned, {STOP})
    assert not Drafts.read(folder).usual
    (folder / FILE).write_text(drafts.dumps(), encoding="utf-8")
    assert Drafts.read(folder).usual == drafts.usual


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"next": []}', '{"next": {"1": null}}', '{"next": {"a": 1}}', "nonsense"]
)
def test_a_malformed_table_is_a_value_error(text, tmp_path):
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"table of drafts|invalid literal|Expecting value|expected"):
        Drafts.read(tmp_path)
