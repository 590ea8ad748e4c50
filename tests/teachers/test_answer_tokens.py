"""Answers are tokenized in their place, whatever the tokenizer's kind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from distillctl.data.answer_place import AnswerPlace
from distillctl.errors import RecipeError
from distillctl.recipe import HuggingFaceTeacher
from distillctl.teachers.answer_tokens import AnswerTokenizer
from distillctl.teachers.huggingface import Teacher
from tests.fixtures import tokenizers_of_kind

WORDS = ["bazu", "miro", "fe", "fete", "zupa"]


def sentence_piece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a space before the text, spaces as ▁, and nothing splits words."""
    alphabet = sorted({c for word in WORDS for c in word} | set("abdfgklmnprstvz:.,") | {"▁", "\n"})
    pieces = [*alphabet, *(f"▁{w[:n]}" for w in WORDS for n in range(1, len(w) + 1))]
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *pieces]))}
    merges = [(p[:-1], p[-1]) for p in vocabulary if p.startswith("▁") and len(p) > 1]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


KINDS = {
    "byte_level": tokenizers_of_kind.byte_level,
    "byte_fallback": tokenizers_of_kind.byte_fallback,
    "word_piece": tokenizers_of_kind.word_piece,
    "unigram": tokenizers_of_kind.unigram,
    "sentence_piece_bpe": sentence_piece_bpe,
}


@cache
def teacher(kind: str) -> Teacher:
    torch.manual_seed(0)
    tokenizer: Any = KINDS[kind]()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), initializer_range=0.5, **sizes)
    return Teacher(AutoModelForCausalLM.from_config(config).eval(), tokenizer, HuggingFaceTeacher(model="tiny"))


words = st.sampled_from(WORDS)
texts = st.lists(st.one_of(words, st.sampled_from([":", ".", "\n"])), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@given(view=texts, end=st.sampled_from(["", " ", ":", ": ", "\n"]), labels=st.sets(words, min_size=2).map(sorted))
def test_view_and_answer_are_the_tokens_of_the_whole_text(kind: str, view: str, end: str, labels: list[str]) -> None:
    loaded, place = teacher(kind), AnswerPlace()
    text = view + end
    found = loaded.label_tokens(text, labels, place)
    for label, ids in zip(labels, found.answers, strict=True):
        assert ids
        assert [*found.view, *ids] == loaded.encode(place.before(text) + place.between(text) + label)


@pytest.mark.parametrize("kind", KINDS)
@given(view=texts, labels=st.sets(words, min_size=2).map(sorted))
def test_label_masses_of_any_label_set_sum_to_at_most_one(kind: str, view: str, labels: list[str]) -> None:
    loaded = teacher(kind)
    found = loaded.label_tokens(view, labels, AnswerPlace())
    scores = loaded.score([found.view], [found.answers], None)
    assert scores.mass[0] <= 1 + 1e-4
    assert scores.next_log_probs is not None
    assert scores.next_log_probs[0] <= 1e-6


def test_a_space_that_ends_the_view_belongs_to_the_answers_first_token() -> None:
    loaded, labels = teacher("sentence_piece_bpe"), ["bazu", "miro"]
    bare, spaced = (loaded.label_tokens(text, labels, AnswerPlace()) for text in ("fete:", "fete: "))
    assert (bare.view, bare.answers) == (spaced.view, spaced.answers)
    assert (bare.merged, spaced.merged) == (0, 1)
    assert [loaded.tokenizer.convert_ids_to_tokens(list(ids)) for ids in bare.answers] == [["▁bazu"], ["▁miro"]]


def test_with_an_empty_prefix_the_words_keep_tokens_of_their_own() -> None:
    loaded = teacher("sentence_piece_bpe")
    found = loaded.label_tokens("fete", ["bazu", "miro"], AnswerPlace(prefix=""))
    assert (found.view, found.merged) == (loaded.encode("fete"), 0)
    assert found.answers == loaded.label_tokens("fete", ["bazu", "miro"], AnswerPlace()).answers


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"task.labels: 'fe  te' and 'fe te' are the same tokens to the teacher"):
        teacher("word_piece").label_tokens("fe", ["fe  te", "fe te"], AnswerPlace())


def test_words_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"task.labels: the teacher's tokenizer cannot write '漢'"):
        teacher("word_piece").label_tokens("fe", ["漢", "bazu"], AnswerPlace())


def test_views_that_end_alike_are_tokenized_with_their_answers_once() -> None:
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [ord(c) for c in text]

    tokenize = AnswerTokenizer(encode)
    tail = "x" * 100
    assert tokenize("a" + tail, ["1", "12"]).answers == tokenize("b" + tail, ["1", "12"]).answers == ((49,), (49, 50))
    assert len(asked) == 4  # two views, and two whole texts


@pytest.mark.parametrize("kind", KINDS)
@given(view=texts, said=texts)
def test_a_given_response_is_the_tokens_that_follow_its_view(kind: str, view: str, said: str) -> None:
    loaded, place = teacher(kind), AnswerPlace()
    found = loaded.in_place(view + ":", [said + "\n"], place)
    assert [*found.view, *found.answers[0]] == loaded.encode(f"{view}: {said}\n")
