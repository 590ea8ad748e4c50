"""Texts of a served teacher: kept as they were answered, and no thoughts taken for answers unsaid."""

import numpy as np
import pytest
from scipy.special import log_softmax

from distillctl import pipeline
from distillctl.errors import RecipeError
from distillctl.recipe import Text
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards as text_store
from distillctl.soft_labels.text import TextLabels
from tests.fixtures import served_project, stub_server

TASK = {"kind": "generate", "max_new_tokens": 3, "soft_labels": {"kind": "text"}}


class Fixed(stub_server.Hashed):
    """Answers every prompt with the same words."""

    def __init__(self, *words):
        super().__init__([*stub_server.WORDS, *words])
        self.said = [*(self.tokens.index(word.encode()) for word in words), self.end]

    def next(self, ids):
        done = next(n for n in range(len(self.said) - 1, -1, -1) if list(ids[len(ids) - n :]) == self.said[:n])
        return log_softmax(30.0 * (np.arange(len(self.tokens)) == self.said[done]))


def _collect(folder, stub, **teacher):
    train = {"loss": [{"kind": "cross_entropy"}]}
    recipe = served_project.recipe(folder, stub.url, teacher=teacher, task=TASK, train=train)
    workspace = Workspace(folder / "run")
    return workspace, pipeline.stage("collect", recipe, workspace).manifest.facts


@pytest.mark.parametrize("key", ["none", "EMPTY", "ollama", "test", "x"])
def test_the_key_of_a_local_server_may_be_a_word_of_its_answers(tmp_path, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with stub_server.serve(Fixed(f" {key}ly"), key=key) as stub:
        workspace, _ = _collect(tmp_path, stub, api_key_env="SOME_KEY")
    assert set(text_store.read(workspace, "full", "train", TextLabels(Text())).text) == {f"{key}ly"}


def test_thoughts_before_an_answer_are_said(tmp_path):
    with stub_server.serve(Fixed("<think>", "</think>", " king")) as stub:
        _, facts = _collect(tmp_path, stub)
    assert [one["code"] for one in facts["cautions"]].count("responses-think") == 1


def test_thoughts_without_an_answer_are_refused(tmp_path):
    told = "60 of 60 responses are the teacher's thoughts"
    with stub_server.serve(Fixed("<think>", " king", " sees")) as stub, pytest.raises(RecipeError, match=told) as error:
        _collect(tmp_path, stub)
    assert "enable_thinking: false" in error.value.next
