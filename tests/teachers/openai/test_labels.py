"""Labels of a served teacher: exclusive, in their place, and no number where nothing was measured."""

import asyncio
import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.errors import RecipeError
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import measured
from distillctl.teachers.openai import labels
from distillctl.teachers.openai.labels import Label
from distillctl.teachers.openai.protocol import Position
from tests.fixtures import served_project, stub_server, tiny_generate, tokenizers_of_kind

pytestmark = [pytest.mark.long, pytest.mark.slow]

LIKELY = -8.0
"""Without the tokenizer, a word that the model would hardly write may be read as other tokens (" " and "river")."""
ALPHABET = [b"a", b"b", b"ab", b"ba", b"aa", b"c"]


def _score(words, top, *, seed=0, tokens=None):
    """Labels of a random language over ``ALPHABET`` of which the ``top`` likeliest tokens are shown, in six digits."""

    async def following(path):
        generator = np.random.default_rng([seed, *b"".join(path)])
        log_probs = log_softmax(generator.normal(0, 2, len(ALPHABET) + 1))[: len(ALPHABET)]
        order = np.argsort(-log_probs)[:top]
        return Position(b"", tuple((ALPHABET[i], round(float(log_probs[i]), 6)) for i in order))

    found = [Label(word.decode(), word, tokens and tokens(word)) for word in words]
    return labels.scores(asyncio.run(labels.begun(found, following, first_only=False)))


def _longest_first(word):
    """The only way to write a word."""
    tokens = []
    while word:
        tokens.append(max((token for token in ALPHABET if word.startswith(token)), key=len))
        word = word[len(tokens[-1]) :]
    return tuple(tokens)


WORDS = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=2, max_size=7, unique=True)


@settings(max_examples=200)
@given(words=WORDS, top=st.integers(1, 6), seed=st.integers(0, 2**20), known=st.booleans())
def test_masses_of_any_labels_add_up_to_no_more_than_1(words, top, seed, known):
    found = _score(words, top, seed=seed, tokens=_longest_first if known else None)
    assert found.mass <= 1 + 1e-6
    assert found.mass == pytest.approx(np.exp(found.log_probs[found.seen].astype(float)).sum())


@settings(max_examples=200)
@given(words=WORDS, top=st.integers(1, 6), seed=st.integers(0, 2**20), known=st.booleans(), data=st.data())
def test_the_order_of_the_labels_changes_no_score(words, top, seed, known, data):
    order = data.draw(st.permutations(range(len(words))))
    tokens = _longest_first if known else None
    one, other = (
        _score(words, top, seed=seed, tokens=tokens),
        _score([words[i] for i in order], top, seed=seed, tokens=tokens),
    )
    np.testing.assert_allclose(one.log_probs[order], other.log_probs, atol=1e-6)
    assert one.measured == other.measured
    if one.measured:
        assert words[one.log_probs.argmax()] == words[order[other.log_probs.argmax()]]


@settings(max_examples=200)
@given(words=WORDS, top=st.integers(1, 6), seed=st.integers(0, 2**20))
def test_a_measured_row_has_the_likeliest_label_of_all(words, top, seed):
    """Whatever is not shown."""
    whole, part = (_score(words, count, seed=seed, tokens=_longest_first) for count in (len(ALPHABET), top))
    np.testing.assert_array_less(whole.log_probs - 0.02, part.log_probs + 1e-4)  # bounds are bounds
    np.testing.assert_allclose(part.log_probs[part.seen], whole.log_probs[part.seen], atol=2 * labels.EXACT)
    if part.measured:
        top_label = int(part.log_probs.argmax())
        assert whole.log_probs[top_label] >= whole.log_probs.max() - 2 * labels.EXACT


def test_a_label_that_is_not_the_likeliest_token_may_still_win_with_its_end():
    """P("10") = P("1") P("0" after "1") never exceeds P("1"): what is compared is "1" that is not "10"."""

    async def following(path):
        return Position(b"", ((b"1", math.log(0.6)), (b"2", math.log(0.4))) if not path else ((b"0", math.log(0.9)),))

    found = [Label(name, name.encode()) for name in ("1", "2", "10")]
    scores = labels.scores(asyncio.run(labels.begun(found, following, first_only=False)))
    np.testing.assert_allclose(np.exp(scores.log_probs), [0.06, 0.4, 0.54], rtol=1e-4)
    assert scores.seen.all()


def test_nothing_is_measured_where_two_labels_are_as_likely_or_none_was_shown():
    log_probs = np.array([[-1.0, -1.0], [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0], [-1.0, -3.0]], np.float32)
    seen = np.array([[True, True], [True, True], [True, False], [False, False], [True, False]])
    assert measured(log_probs, seen).tolist() == [False, True, False, False, True]
    assert measured(log_probs, None).all()


# ── a recipe ─────────────────────────────────────────────────────────────────────────────────────


def _collect(recipe, root):
    workspace = Workspace(root)
    return workspace, pipeline.stage("collect", recipe, workspace).manifest.facts


def _codes(facts):
    return {one["code"] for one in facts["cautions"]}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """All labels of all rows are shown."""
    folder = tmp_path_factory.mktemp("truth")
    with stub_server.serve(most_logprobs=1000) as stub:
        recipe = served_project.recipe(folder, stub.url, count=200, evaluated=80, teacher={"top_logprobs": 120})
        return _collect(recipe, folder / "run")


def _check_left_out(workspace, facts, truth):
    """The rows that are there have the label that they have where all is shown; the others are nowhere."""
    views = {
        split: view_table.read(workspace.folder("collect") / "views.parquet", split) for split in ("train", "eval")
    }
    for split, table in views.items():
        mine, theirs = label_shards.read(workspace, "full", split), label_shards.read(truth[0], "full", split)
        everything = dict(zip(theirs.ids, theirs.log_probs.argmax(-1), strict=True))
        assert mine.ids == table.id
        assert mine.log_probs.argmax(-1).tolist() == [everything[row] for row in mine.ids]
        assert facts["unmeasured"][split]["rows"] == len(theirs.ids) - len(mine.ids)
        assert facts["counts"][split] == len(mine.ids)
    assert all(arm["n"] == len(views["eval"].id) for arm in facts["arms"].values())
    for arm in ("full", "simplified"):
        found = label_shards.read(workspace, arm, "eval")
        assert measured(found.log_probs, found.seen).all()


def test_rows_that_are_not_measured_are_left_out_everywhere_and_counted(truth, tmp_path):
    with stub_server.serve(most_logprobs=28) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, count=200, evaluated=80, teacher={"top_logprobs": 28})
        workspace, facts = _collect(recipe, tmp_path / "run")
    assert sum(part["rows"] for part in facts["unmeasured"].values()) > 0
    assert "rows-not-measured" in _codes(facts)
    _check_left_out(workspace, facts, truth)


def test_reversed_labels_have_the_same_scores(tmp_path):
    found = []
    for order in (list(served_project.LABELS.items()), list(served_project.LABELS.items())[::-1]):
        folder = tmp_path / order[0][0]
        folder.mkdir()
        with stub_server.serve(most_logprobs=28) as stub:
            recipe = served_project.recipe(
                folder, stub.url, count=200, evaluated=80, teacher={"top_logprobs": 28}, task={"labels": dict(order)}
            )
            found.append(_collect(recipe, folder / "run")[1])
    assert found[0]["arms"] == found[1]["arms"]
    assert found[0]["unmeasured"] == found[1]["unmeasured"]


@pytest.mark.parametrize("prior", ["none", "batch"])
def test_too_many_rows_that_are_not_measured_are_refused(tmp_path, prior):
    with stub_server.serve(most_logprobs=5) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, teacher={"top_logprobs": 5}, task={"prior": prior})
        with pytest.raises(RecipeError, match=r"\d+ of \d+ \w+ rows are not measured.*would rather write '") as error:
            _collect(recipe, tmp_path / "run")
        assert error.value.exit_code == 3
        asked = len(stub.bodies)
        with pytest.raises(RecipeError, match="not measured"):
            _collect(recipe, tmp_path / "run")
        assert len(stub.bodies) == asked  # what was paid for is not paid for again
    assert Workspace(tmp_path / "run").manifest("collect") is None


@pytest.mark.parametrize("rules", [{"most_logprobs": 1000}, {"most_logprobs": 5, "echo": True}])
def test_a_row_that_is_not_measured_is_asked_for_in_another_way(truth, tmp_path, rules):
    """For more of the likeliest tokens, and for the labels' own."""
    with stub_server.serve(**rules) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, count=200, evaluated=80, teacher={"top_logprobs": 5})
        workspace, facts = _collect(recipe, tmp_path / "run")
        assert any(body.get("echo") for body in stub.bodies) == bool(rules.get("echo"))
    assert facts["unmeasured"] == {"train": {"rows": 0, "share": 0.0}, "eval": {"rows": 0, "share": 0.0}}
    assert "rows-not-measured" not in _codes(facts)
    for arm, split in (("full", "train"), ("full", "eval"), ("simplified", "eval")):
        mine, theirs = label_shards.read(workspace, arm, split), label_shards.read(truth[0], arm, split)
        assert mine.log_probs.argmax(-1).tolist() == theirs.log_probs.argmax(-1).tolist()
        likely = mine.seen & (theirs.log_probs > LIKELY)
        assert likely.any(-1).mean() > 0.9
        np.testing.assert_allclose(mine.log_probs[likely], theirs.log_probs[likely], atol=labels.EXACT)


def test_a_teacher_that_would_think_first_gives_no_labels(tmp_path):
    speaker = stub_server.Hashed([*stub_server.WORDS, "<think>"], scale=0.01)
    speaker.next = lambda ids, own=speaker.next: log_softmax(
        own(ids) + 9.0 * np.array([token == b"<think>" for token in speaker.tokens])
    )
    told = "would rather write '<think>'"
    with stub_server.serve(speaker) as stub, pytest.raises(RecipeError, match=told) as error:
        _collect(served_project.recipe(tmp_path, stub.url), tmp_path / "run")
    assert "enable_thinking: false" in error.value.next


def test_a_budget_that_the_server_does_not_count_for_is_said(tmp_path):
    with stub_server.serve(counts_nothing=True) as stub:
        recipe = served_project.recipe(tmp_path, stub.url, teacher={"max_tokens_total": 10**7})
        _, facts = _collect(recipe, tmp_path / "run")
    assert "tokens-not-counted" in _codes(facts)
    assert facts["teacher"]["served"]["tokens"]["read"] > 1000


def test_arguments_of_the_chat_template_are_sent_with_every_question(tmp_path):
    with stub_server.serve() as stub:
        arguments = {"enable_thinking": False}
        teacher = {"api": "chat", "chat_template_kwargs": arguments}
        _collect(
            served_project.recipe(tmp_path, stub.url, teacher=teacher, task={"labels": ["river", "king", "city"]}),
            tmp_path / "run",
        )
        assert stub.bodies
        assert all(body["chat_template_kwargs"] == arguments for body in stub.bodies)


# ── the same weights, whatever their tokenizer is like ───────────────────────────────────────────

TEMPLATES = {
    "cue": "baz: {{ input }}\nAnswer:",
    "space": "{{ input }} -> ",
    "newline": "{{ input }}\nAnswer:\n",
    "examples": "river\nis: old\n\nking\nis: far\n\n{{ input }}\nis:",
}


def _without_twins(tokenizer):
    """Without bytes that are characters of the vocabulary, too: a server names both alike, and a model that was trained
    never writes them, but one of random weights does."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    words = document["model"]["vocab"]
    for byte in range(128):
        if {" ": "▁"}.get(chr(byte), chr(byte)) in words:
            words[f"<unused-{byte}>"] = words.pop(f"<0x{byte:02X}>")
    names = {key: str(getattr(tokenizer, key)) for key in ("pad_token", "eos_token", "bos_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), **names)


@pytest.fixture(scope="module", params=["byte_level", "whole_words_first", "byte_fallback", "unigram", "word_piece"])
def weights(request, tmp_path_factory):
    """A folder with a tiny Llama of that tokenizer, and the same as a server speaks it."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = getattr(tokenizers_of_kind, request.param)()
    if request.param == "byte_fallback":
        tokenizer = _without_twins(tokenizer)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.sep_token
    model = tiny_generate.decoder(vocabulary=len(tokenizer))
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder, stub_server.Model(model, tokenizer)


@pytest.mark.parametrize("template", TEMPLATES)
def test_local_and_served_labels_of_the_same_weights_agree(weights, tmp_path, template):
    folder, speaker = weights
    words = {"river": "river", "king": "king", "city": "kingdom", "other": "old city"}
    sections = {"task": {"labels": words}, "contexts": {"full": {"template": TEMPLATES[template]}}}
    (tmp_path / "teacher").symlink_to(folder / "teacher")
    with stub_server.serve(speaker, most_logprobs=1000, echo=True) as stub:
        teacher = {"tokenizer": "teacher", "top_logprobs": 1000}
        recipe = served_project.recipe(tmp_path, stub.url, count=24, evaluated=10, teacher=teacher, **sections)
        served, _ = _collect(recipe, tmp_path / "served")
    tree = yaml.safe_load(recipe.path.read_text()) | {"teacher": {"model": "teacher", "threads": 1}}
    recipe.path.write_text(yaml.safe_dump(tree, sort_keys=False))
    local, _ = _collect(recipes.load(recipe.path), tmp_path / "local")
    for arm, split in (("full", "train"), ("full", "eval"), ("simplified", "eval")):
        mine, theirs = label_shards.read(served, arm, split), label_shards.read(local, arm, split)
        assert mine.seen[theirs.log_probs > LIKELY].all()
        np.testing.assert_allclose(mine.log_probs[mine.seen], theirs.log_probs[mine.seen], atol=1e-4)
        assert (mine.log_probs >= theirs.log_probs - 1e-4).all()
        assert mine.ids == theirs.ids
        assert (mine.mass <= 1 + 1e-6).all()
