"""A tokenizer of the student's own: it gives back what it was given, frames views for its model, and never varies."""

import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distillctl.recipe import Classify, Generate, NewTokenizer
from distillctl.students import new_tokenizer
from tests.fixtures import tiny, tiny_generate, tokenizers_of_kind

pytestmark = pytest.mark.slow

MODELS = ["bpe", "unigram"]
TEXTS = tokenizers_of_kind.texts(300)
FRENCH = "«\u202fDéjà\u00a0: l’été, ça coûte 3,50\u00a0€…\u202f»  (n°\u00a05)\n\tœuvre "
TRAINED = {model: new_tokenizer.train(NewTokenizer(model=model, vocabulary=500), TEXTS, "decoder") for model in MODELS}


def reads(tokenizer, text):
    return tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("model", MODELS)
@given(text=st.text() | st.sampled_from([*TEXTS, FRENCH, " a", "a ", "  ", "日本🙂"]))
def test_a_text_is_given_back_spaces_and_all(model, text):
    assert reads(TRAINED[model], text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("model", MODELS)
def test_an_accent_is_the_same_however_it_was_typed(model):
    apart = unicodedata.normalize("NFD", FRENCH)
    assert apart != FRENCH
    assert TRAINED[model](apart).input_ids == TRAINED[model](FRENCH).input_ids
    assert reads(TRAINED[model], apart) == FRENCH


@pytest.mark.parametrize("model", MODELS)
def test_it_is_as_large_as_asked_or_as_the_texts_allow_and_learns_their_words(model):
    tokenizer = TRAINED[model]
    assert 400 < len(tokenizer) <= 500
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    tokens = sum(len(tokenizer(text).input_ids) for text in TEXTS)
    assert tokens < 0.6 * sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("frame", "before", "after"),
    [("decoder", ["<s>"], []), ("encoder_decoder", [], ["</s>"]), ("classifier", ["<s>"], ["</s>"])],
)
def test_the_plain_library_frames_views_as_the_model_expects(tmp_path, model, frame, before, after):
    tokenizer = new_tokenizer.train(NewTokenizer(model=model, vocabulary=400), TEXTS, frame)
    tokenizer.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inside = plain.encode(FRENCH, add_special_tokens=False).tokens
    assert plain.encode(FRENCH).tokens == [*before, *inside, *after]
    assert plain.encode(FRENCH).ids == tokenizer(FRENCH).input_ids
    assert plain.decode(plain.encode(FRENCH).ids) == FRENCH
    assert set(tokenizer(FRENCH)) == {"input_ids", "attention_mask"}


def test_frames_follow_task_and_architecture():
    labels, text = Classify(labels=tiny.LABELS), Generate(kind="generate")
    assert new_tokenizer.frame_for(labels, tiny.model("bert").config) == "classifier"
    assert new_tokenizer.frame_for(text, tiny_generate.decoder().config) == "decoder"
    assert new_tokenizer.frame_for(text, tiny_generate.seq2seq().config) == "encoder_decoder"


@pytest.mark.parametrize("model", MODELS)
def test_the_same_texts_give_the_same_file_here_and_in_another_process(model):
    script = f"""
from distillctl.recipe import NewTokenizer
from distillctl.students import new_tokenizer
from tests.fixtures import tokenizers_of_kind
spec = NewTokenizer(model={model!r}, vocabulary=500)
print(new_tokenizer.train(spec, tokenizers_of_kind.texts(300), "decoder").backend_tokenizer.to_str(), end="")
"""
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = new_tokenizer.train(NewTokenizer(model=model, vocabulary=500), TEXTS, "decoder").backend_tokenizer.to_str()
    assert here == elsewhere == TRAINED[model].backend_tokenizer.to_str()
