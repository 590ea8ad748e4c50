"""The text-in graph: onnxruntime-extensions' tokenizers give the ids that the student learned with."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distillctl.bundle import text_in
from distillctl.errors import GateFailed, RecipeError
from distillctl.graphs import sidecar_files
from distillctl.recipe import TrimmedVocabulary
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.students.student import Corpus
from distillctl.students.vocabulary import trim
from tests.fixtures import bundled, tiny_generate, tokenizers_of_kind

_folders = tempfile.TemporaryDirectory()


def framed(kind: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with special tokens before and after, as RoBERTa's."""
    made = tokenizers_of_kind.byte_level()
    backend = made.backend_tokenizer
    ends = [(token, backend.token_to_id(token)) for token in ("<pad>", "<eos>")]
    if kind == "roberta":
        backend.post_processor = processors.RobertaProcessing(ends[1], ends[0])
    else:
        backend.post_processor = processors.TemplateProcessing(single="<pad> $A <eos> <eos>", special_tokens=ends)
    return made


def cased() -> PreTrainedTokenizerFast:
    """WordPiece that keeps capitals and accents, without special tokens around a text."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    backend.train_from_iterator([text.title() for text in tokenizers_of_kind.texts(300)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def trimmed(make) -> PreTrainedTokenizerFast:
    """Its tokens under new numbers."""
    full = make()
    corpus = Corpus(tokenizers_of_kind.texts(200, seed=3), [])
    small, kept, _ = trim(tiny_generate.decoder(vocabulary=len(full)), full, TrimmedVocabulary(merges=20), corpus)
    assert len(kept) < len(full)
    return small


KINDS = {
    "word_piece": tokenizers_of_kind.word_piece,
    "cased": cased,
    "byte_level": tokenizers_of_kind.byte_level,
    "whole_words_first": tokenizers_of_kind.whole_words_first,
    "byte_fallback": tokenizers_of_kind.byte_fallback,
    "roberta": lambda: framed("roberta"),
    "template": lambda: framed("template"),
    "trimmed_word_piece": lambda: trimmed(tokenizers_of_kind.word_piece),
    "trimmed_byte_level": lambda: trimmed(tokenizers_of_kind.byte_level),
}


def laid_out(folder: Path, make) -> Path:
    """A tokenizer and a graph, as quantize leaves them."""
    tokenizer = make()
    tokenizer.save_pretrained(folder / "source")
    (folder / "source" / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}, "pad_token_id": 0}')
    sidecar_files.copy(folder / "source", folder, bundled.INPUTS)
    bundled.graph(folder, len(tokenizer))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request) -> Path:
    folder = Path(_folders.name) / request.param
    folder.mkdir()
    laid_out(folder, KINDS[request.param])
    text_in.build(folder, bundled.MAX_LENGTH)
    return folder


def test_the_same_ids_and_logits_as_the_tokenizer_and_the_plain_graph(folder):
    texts = tokenizers_of_kind.texts(200, seed=3)  # many are longer than the model takes, and are cut
    if folder.name == "cased":
        texts = [text.title() for text in texts]
    lengths = [len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids) for text in texts]
    assert min(lengths) <= bundled.MAX_LENGTH < max(lengths)
    found = text_in.check_ids(folder, bundled.MAX_LENGTH, texts, texts)
    plain = OnnxClassifier(folder, max_length=bundled.MAX_LENGTH).logits(texts)
    np.testing.assert_allclose(found, plain, atol=1e-5)


@given(words=st.lists(st.sampled_from(" ".join(tokenizers_of_kind.texts(50)).split()), max_size=30), gap=st.text(" "))
@settings(max_examples=30)
def test_any_known_words(words, gap):
    folder = Path(_folders.name) / "any"
    if not folder.exists():
        folder.mkdir()
        laid_out(folder, tokenizers_of_kind.word_piece)
        text_in.build(folder, bundled.MAX_LENGTH)
    assert text_in.other_ids(folder, bundled.MAX_LENGTH, [gap + f" {gap}".join(words)]) == []


def test_the_check_names_the_first_row_that_differs(tmp_path):
    folder = laid_out(tmp_path, tokenizers_of_kind.word_piece)
    text_in.build(folder, bundled.MAX_LENGTH)
    assert text_in.other_ids(folder, bundled.MAX_LENGTH)  # it does read some odd texts otherwise
    with pytest.raises(GateFailed, match="row second"):
        text_in.check_ids(folder, bundled.MAX_LENGTH, ["first", "second", "third"], ["ba", "[SEP]", "[CLS]"])


def test_another_cut_is_found(tmp_path):
    """A graph made for other lengths than the student's."""
    folder = laid_out(tmp_path, tokenizers_of_kind.word_piece)
    text_in.build(folder, bundled.MAX_LENGTH + 1)
    long = " ".join(bundled.texts())
    with pytest.raises(GateFailed, match="row long"):
        text_in.check_ids(folder, bundled.MAX_LENGTH, ["long"], [long])


@pytest.mark.parametrize("make", [tokenizers_of_kind.unigram, tokenizers_of_kind.one_word_one_token])
def test_tokenizers_that_the_extensions_have_not(tmp_path, make):
    with pytest.raises(RecipeError, match="has no tokenizer of the kind") as told:
        text_in.build(laid_out(tmp_path, make), bundled.MAX_LENGTH)
    assert told.value.where == "bundle.text_in"
    assert not (tmp_path / text_in.FILE).exists()


def test_word_piece_without_berts_normalizer(tmp_path):
    folder = laid_out(tmp_path, tokenizers_of_kind.word_piece)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(document | {"normalizer": {"type": "NFC"}}))
    with pytest.raises(RecipeError, match="another normalizer"):
        text_in.build(folder, bundled.MAX_LENGTH)


def test_an_input_that_no_tokenizer_makes(tmp_path):
    folder = laid_out(tmp_path, tokenizers_of_kind.word_piece)
    model = onnx.load(folder / "model.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(RecipeError, match="the graph also takes scale"):
        text_in.build(folder, bundled.MAX_LENGTH)


def test_one_file_alone(folder, tmp_path):
    """Nothing beside it is read."""
    shutil.copy(folder / text_in.FILE, tmp_path)
    opened = text_in.session(tmp_path / text_in.FILE)
    logits, label = opened.run(["logits", "label"], {"text": ["ba"]})
    assert logits.shape == (1, 3)
    assert label.tolist() == [int(logits[0].argmax())]
