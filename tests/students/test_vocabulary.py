"""Trimming: the corpus tokenizes as before, any text is still written, and the model answers as it did."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from distillctl.errors import RecipeError
from distillctl.recipe import TrimmedVocabulary
from distillctl.students.student import Corpus, Student
from distillctl.students.vocabulary import trim, vocabulary_digest
from tests.fixtures import tiny, tiny_generate, tokenizers_of_kind

LOSSLESS = ["byte_level", "whole_words_first", "byte_fallback"]
KINDS = [*LOSSLESS, "word_piece", "unigram"]
TOKENIZERS = {kind: getattr(tokenizers_of_kind, kind)() for kind in KINDS}
SENTENCES = tokenizers_of_kind.texts(60, seed=7)
MODELS = [("llama", False), ("llama", True), ("qwen2", True), ("gpt2", True), ("gemma3_text", True)]


def model(kind="llama", tie=False, **config):
    return tiny_generate.decoder(kind, len(TOKENIZERS["byte_level"]), tie_word_embeddings=tie, **config)


def trimmed(texts, *, kind="byte_level", merges=20, token_ids=(), held_out=None, teacher=None):
    full = TOKENIZERS[kind]
    small = tiny_generate.decoder(vocabulary=len(full))
    corpus = Corpus(list(texts), [list(ids) for ids in token_ids], held_out, teacher)
    return full, *trim(small, full, TrimmedVocabulary(merges=merges), corpus)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(texts=st.lists(st.sampled_from(SENTENCES) | st.text(max_size=20), max_size=6), merges=st.integers(1, 120))
def test_the_corpus_tokenizes_as_before(kind, texts, merges):
    full, tokenizer, kept, _ = trimmed(texts, kind=kind, merges=merges)
    assert len(tokenizer) == len(kept) < len(full)
    assert (np.diff(kept) > 0).all()
    for text in texts:
        assert kept[tokenizer(text).input_ids].tolist() == full(text).input_ids


@functools.cache
def of_three_sentences(kind):
    return trimmed(SENTENCES[:3], kind=kind)[:2]


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text() | st.sampled_from(SENTENCES))
def test_any_text_can_still_be_written(kind, text):
    full, tokenizer = of_three_sentences(kind)
    assert tokenizer.decode(tokenizer(text).input_ids) == full.decode(full(text).input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kept_token_can_be_formed_if_it_could_before(kind):
    full, tokenizer, kept, _ = trimmed(SENTENCES[:8], kind=kind, merges=200)
    before, after = full.backend_tokenizer.model, tokenizer.backend_tokenizer.model
    formed = 0
    for new, old in enumerate(kept):
        word = full.convert_ids_to_tokens(int(old))
        if [token.id for token in before.tokenize(word)] == [old]:
            formed += 1
            assert [token.id for token in after.tokenize(word)] == [new], word
    assert formed > 0.3 * len(kept)


@pytest.mark.parametrize("kind", ["word_piece", "unigram"])
def test_what_is_made_of_known_characters_is_still_known(kind):
    full, tokenizer, _, _ = trimmed([], kind=kind, merges=1)
    for text in SENTENCES:
        assert full.unk_token_id not in full(text).input_ids
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_an_unknown_character_costs_a_unigram_tokenizer_what_it_did():
    pieces = [("<pad>", 0), ("<eos>", 0), ("<unk>", 0), ("xy", -1), ("x", -14), ("y", -14), ("yж", -14), ("zz", -30)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    full = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    assert full.tokenize("xyж") == ["x", "yж"]  # −28; "xy" and an unknown character: −1 − (30 + 10)
    tokenizer = trim(tiny_generate.decoder(vocabulary=8), full, TrimmedVocabulary(merges=4), Corpus(["xyж"], []))[0]
    assert tokenizer.tokenize("xyж") == ["x", "yж"]


def test_special_tokens_stay_and_those_kept_for_others_go():
    full, tokenizer, _, _ = trimmed(["the sea"])
    for token in ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>"):
        [id_] = tokenizer(token).input_ids
        assert tokenizer.convert_ids_to_tokens(id_) == token
    assert tokenizer.extra_special_tokens == ["<|im_start|>"]
    assert "<|reserved_special_token_0|>" in full.get_vocab()
    assert "<|reserved_special_token_0|>" not in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("<|reserved_special_token_0|>").input_ids) == "<|reserved_special_token_0|>"
    assert "<|reserved_special_token_0|>" in trimmed(["<|reserved_special_token_0|>"])[1].get_vocab()


def test_the_teachers_tokens_stay_unless_its_tokenizer_is_another():
    said, digest = [500, 501], vocabulary_digest(TOKENIZERS["byte_level"])
    for teacher, there in ((None, True), (digest, True), ("another", False)):
        kept = trimmed([], token_ids=[said], teacher=teacher)[2]
        assert set(said).issubset(kept.tolist()) == there


def test_facts_count_what_went_and_what_the_train_rows_did_not_have():
    full = TOKENIZERS["byte_level"]
    small = model()
    total = sum(p.numel() for p in small.parameters())
    _, kept, facts = trim(
        small, full, TrimmedVocabulary(merges=5), Corpus([SENTENCES[0]], [], Corpus([SENTENCES[1]], []))
    )
    assert facts.tokens_before == len(full)
    assert facts.tokens_after == len(kept)
    assert facts.bytes_saved == 4 * 2 * 64 * (len(full) - len(kept))
    assert facts.share_saved == pytest.approx(facts.bytes_saved / 4 / total)
    without = trimmed([SENTENCES[0]], merges=5)[2]
    new = [token for token in full(SENTENCES[1]).input_ids if token not in without]
    assert 0 < facts.unseen_share == len(new) / len(full(SENTENCES[1]).input_ids)
    assert trimmed([SENTENCES[0]])[3].unseen_share is None
    assert trimmed(SENTENCES[:2], held_out=Corpus(SENTENCES[:2], []))[3].unseen_share == 0


def test_the_student_maps_old_ids_to_new_ones():
    full, tokenizer, kept, facts = trimmed(SENTENCES[:3])
    remap = Student(model(), tokenizer, 10, kept, facts).remap
    assert len(remap) == len(full)
    assert (remap[kept] == np.arange(len(kept))).all()
    assert (remap == -1).sum() == len(full) - len(kept)
    assert Student(model(), tokenizer, 10).remap is None


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def cut_copy(build, texts, merges=60):
    full, small, tokenizer = build(), build(), TOKENIZERS["byte_level"]
    new_tokenizer, kept, _ = trim(small, tokenizer, TrimmedVocabulary(merges=merges), Corpus(texts, []))
    assert len(kept) < 0.9 * len(tokenizer)
    return full.eval(), small.eval(), new_tokenizer, torch.from_numpy(kept)


@pytest.mark.parametrize(("kind", "tie"), MODELS)
@torch.no_grad()
def test_logits_are_the_full_models_at_the_kept_tokens(kind, tie):
    full, small, tokenizer, kept = cut_copy(lambda: model(kind, tie), SENTENCES[:10])
    for text in SENTENCES[:10]:
        old = torch.tensor([TOKENIZERS["byte_level"](text).input_ids])
        new = torch.tensor([tokenizer(text).input_ids])
        torch.testing.assert_close(small(new).logits, full(old).logits[..., kept], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "tie"), [("t5", False), ("t5", True), ("marian", True)])
@torch.no_grad()
def test_logits_of_encoder_decoders_are_the_full_models_at_the_kept_tokens(kind, tie, tmp_path):
    def build():
        whole = tiny_generate.seq2seq(kind, len(TOKENIZERS["byte_level"]), tie_word_embeddings=tie)
        if kind == "marian":
            whole.final_logits_bias.copy_(torch.arange(whole.final_logits_bias.numel()) / 100)
        return whole

    full, small, tokenizer, kept = cut_copy(build, SENTENCES[:10])
    small.save_pretrained(tmp_path)
    for version in (small, AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()):
        for text, start in zip(SENTENCES[:5], SENTENCES[5:10], strict=True):
            old, new = (torch.tensor([t(text).input_ids]) for t in (TOKENIZERS["byte_level"], tokenizer))
            said_old, said_new = (torch.tensor([t(start).input_ids]) for t in (TOKENIZERS["byte_level"], tokenizer))
            after = version(input_ids=new, decoder_input_ids=said_new).logits
            before = full(input_ids=old, decoder_input_ids=said_old).logits[..., kept]
            torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert small.generation_config.decoder_start_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(("kind", "tie"), [("llama", False), ("gpt2", True)])
def test_greedy_answers_are_the_same_until_the_full_model_leaves_the_kept_tokens(kind, tie):
    full, small, tokenizer, kept = cut_copy(lambda: model(kind, tie), SENTENCES[:30], merges=150)
    compared = 0
    for text in SENTENCES[:30]:
        old, new = (torch.tensor([t(text).input_ids]) for t in (TOKENIZERS["byte_level"], tokenizer))
        said = full.generate(old, max_new_tokens=8, do_sample=False)[0, old.shape[1] :]
        inside = int(torch.isin(said, kept).long().cumprod(0).sum())
        answer = small.generate(new, max_new_tokens=8, do_sample=False)[0, new.shape[1] :]
        assert kept[answer[:inside]].tolist() == said[:inside].tolist()
        compared += inside
    assert compared > 60


def test_a_trimmed_student_is_the_same_after_it_was_saved(tmp_path):
    for kind, tie in MODELS:
        full, small, tokenizer, _ = cut_copy(lambda kind=kind, tie=tie: model(kind, tie), SENTENCES[:5])
        small.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / kind).eval()
        assert again.config.vocab_size == len(tokenizer) < full.config.vocab_size
        for config in (again.config, again.generation_config):
            assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
        loaded, plain = (
            AutoTokenizer.from_pretrained(tmp_path / kind),
            Tokenizer.from_file(str(tmp_path / kind / "tokenizer.json")),
        )
        for text in [*SENTENCES, "日本 <|im_start|>x"]:
            ids = tokenizer(text).input_ids
            assert loaded(text).input_ids == plain.encode(text).ids == ids
        ids = torch.tensor([tokenizer(SENTENCES[0]).input_ids])
        torch.testing.assert_close(again(ids).logits, small(ids).logits)
        tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert tied == tie


def test_classifiers_are_trimmed_too():
    tokenizer = TOKENIZERS["word_piece"]
    torch.manual_seed(0)
    whole = AutoModelForSequenceClassification.from_config(tiny.model("bert").config).eval()
    whole.resize_token_embeddings(len(tokenizer))
    small = copy.deepcopy(whole)
    new_tokenizer, kept, facts = trim(small, tokenizer, TrimmedVocabulary(merges=10), Corpus(SENTENCES[:9], []))
    assert facts.bytes_saved == 4 * 32 * (len(tokenizer) - len(kept)) > 0
    for text in SENTENCES[:9]:
        old, new = (torch.tensor([t(text).input_ids]) for t in (tokenizer, new_tokenizer))
        torch.testing.assert_close(small(new).logits, whole(old).logits)
    assert small.get_input_embeddings().padding_idx == new_tokenizer.pad_token_id


def test_ids_beyond_the_models_rows_leave_and_padded_rows_too():
    tokenizer = TOKENIZERS["byte_level"]
    fewer = tiny_generate.decoder(vocabulary=len(tokenizer) - 1)  # as Gemma 3's image token
    new_tokenizer, kept, facts = trim(fewer, tokenizer, TrimmedVocabulary(merges=5), Corpus(SENTENCES[:3], []))
    assert facts.tokens_before == len(tokenizer) - 1 > kept.max()
    assert len(new_tokenizer) == len(kept)
    padded = tiny_generate.decoder(vocabulary=len(tokenizer) + 29)
    _, kept, facts = trim(padded, tokenizer, TrimmedVocabulary(merges=5), Corpus(SENTENCES[:3], []))
    assert facts.tokens_before == len(tokenizer)
    assert facts.bytes_saved == 4 * 2 * 64 * (len(tokenizer) + 29 - len(kept))


def test_ids_in_the_configs_follow():
    small = model()
    small.config.pad_token_id = small.get_input_embeddings().padding_idx = 500
    small.generation_config.eos_token_id = [1, 500]
    small.generation_config.bad_words_ids = [[500], [401, 402]]
    small.generation_config.suppress_tokens = [500, 401]
    _, kept, _ = trim(small, TOKENIZERS["byte_level"], TrimmedVocabulary(merges=1), Corpus([], []))
    new = kept.tolist().index(500)
    assert 401 not in kept
    assert small.config.pad_token_id == small.get_input_embeddings().padding_idx == new < 500
    assert small.generation_config.eos_token_id == [1, new]
    assert small.generation_config.bad_words_ids == [[new]]
    assert small.generation_config.suppress_tokens == [new]


# ── what cannot be trimmed ───────────────────────────────────────────────────────────────────────


def test_other_tokenizers_are_refused():
    tokenizer = tokenizers_of_kind.one_word_one_token()
    with pytest.raises(RecipeError, match="of the kind WordLevel cannot be trimmed") as error:
        trim(tiny_generate.decoder(vocabulary=30), tokenizer, TrimmedVocabulary(), Corpus(["the sea"], []))
    assert error.value.where == "student.vocabulary"
    document = json.loads(TOKENIZERS["byte_fallback"].backend_tokenizer.to_str())
    document["model"]["byte_fallback"] = False
    tokenizer = type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(document)))
    with pytest.raises(RecipeError, match="without bytes to fall back on"):
        trim(tiny_generate.decoder(vocabulary=len(tokenizer)), tokenizer, TrimmedVocabulary(), Corpus([], []))


def test_a_model_with_another_table_of_the_vocabulary_is_refused():
    small = model()
    small.model.per_layer = nn.Embedding(len(TOKENIZERS["byte_level"]), 4)  # as Gemma 3n's
    with pytest.raises(RecipeError, match=r"per_layer\.weight also has a row for each token"):
        trim(small, TOKENIZERS["byte_level"], TrimmedVocabulary(), Corpus([], []))
