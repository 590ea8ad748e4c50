"""Tiny tokenizers of every kind that a vocabulary is trimmed for, trained on the same few sentences."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny_text

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of made-up words (`bazu`, `mirot`), common ones often."""
    generator = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiouéï"]
    words = ["".join(generator.choice(syllables, generator.integers(1, 4))) for _ in range(300)] + tiny_text.WORDS
    generator = np.random.default_rng(seed + 1)
    odds = 1 / (1 + generator.permutation(len(words)))
    return [" ".join(generator.choice(words, generator.integers(1, 9), p=odds / odds.sum())) for _ in range(count)]


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """As GPT-2's, Qwen's and SmolLM's: digits apart, then bytes; chat tokens that are no part of the BPE model."""
    tokenizer = tiny_text.bpe_tokenizer(texts(300), vocabulary=600)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|reserved_special_token_0|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, extra_special_tokens=["<|im_start|>"], **options
    )


def whole_words_first() -> PreTrainedTokenizerFast:
    """As Llama 3's: a word that is a token is taken whole, and to those of four letters and more no merges lead."""
    document = json.loads(byte_level().backend_tokenizer.to_str())
    model = document["model"]
    model["ignore_merges"] = True
    model["merges"] = [pair for pair in model["merges"] if len("".join(pair)) < 5]
    return PreTrainedTokenizerFast(tokenizer_object=_from(document), pad_token=PAD, eos_token=EOS)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Gemma's: characters with bytes to fall back on, spaces as ▁, words not split, every way to a token a merge."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[PAD, EOS, BOS, UNK, "<unused0>"], show_progress=False)
    backend.train_from_iterator(" ".join(texts(300)).split(" "), trainer)
    document = json.loads(backend.to_str())
    model, vocabulary = document["model"], document["model"]["vocab"]
    spaced = [f"▁{word}" for word in sorted(vocabulary, key=vocabulary.__getitem__) if word[0].isalpha()]
    for token in ["▁", *(f"<0x{byte:02X}>" for byte in range(256)), *spaced]:
        vocabulary.setdefault(token, len(vocabulary))
    by_rank = sorted((token for token in vocabulary if token[0] != "<"), key=vocabulary.__getitem__)
    ways = ([token[:cut], token[cut:]] for token in by_rank for cut in range(1, len(token)))
    model["merges"] = [[a, b] for a, b in ways if a in vocabulary and b in vocabulary]
    model |= {"byte_fallback": True, "unk_token": UNK, "fuse_unk": True}
    backend = _from(document)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, bos_token=BOS, unk_token=UNK)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts(300), trainer)
    document = json.loads(backend.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "[unused0]"]
    backend = _from(document)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def unigram() -> PreTrainedTokenizerFast:
    """As T5's: an end token after the text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[PAD, EOS, UNK], unk_token=UNK, show_progress=False
    )
    backend.train_from_iterator(texts(300), trainer)
    backend.add_special_tokens(["<extra_id_0>"])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK)


def one_word_one_token() -> PreTrainedTokenizerFast:
    """A kind that is not trimmed."""
    words = {word: index for index, word in enumerate(itertools.chain([PAD, EOS, UNK], tiny_text.WORDS))}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK)


def _from(document: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(document))
