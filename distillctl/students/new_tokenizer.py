"""Train a tokenizer of the student's own on the train rows' texts: BPE or unigram over bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from distillctl.recipe import NewTokenizer, Task

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
_SPECIAL = [PAD, EOS, BOS]
"""Ids 0, 1 and 2. There is no unknown token, because everything consists of bytes."""

Frame = Literal["decoder", "encoder_decoder", "classifier"]
_FRAMES: dict[Frame, str] = {"decoder": f"{BOS} $A", "encoder_decoder": f"$A {EOS}", "classifier": f"{BOS} $A {EOS}"}


def frame_for(task: Task, config: Any) -> Frame:
    """Return the special tokens that the architecture expects around a view.

    T5 and Marian expect an end token, a decoder a first token (a view may be empty), an encoder that classifies a token
    to read the label from.
    """
    if task.answers:
        return "classifier"
    return "encoder_decoder" if config.is_encoder_decoder else "decoder"


def train(spec: NewTokenizer, texts: Iterable[str], frame: Frame) -> PreTrainedTokenizerFast:
    """Train a tokenizer with at most ``spec.vocabulary`` tokens; the same texts give the same tokenizer.json.

    decode(encode(text)) is the text in Unicode's NFC with all spaces: é as one character or two becomes é, and nothing
    else changes (NFKC would turn the no-break space before a French colon into a plain one, and … into three dots). The
    frame is in tokenizer.json, so the plain `tokenizers` library adds the same special tokens; a response is encoded
    with add_special_tokens=False and followed by the end token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"vocab_size": spec.vocabulary, "special_tokens": _SPECIAL, "show_progress": False}
    if spec.model == "bpe":
        backend = _bytes(Tokenizer(models.BPE()))
        backend.train_from_iterator(iter(texts), trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    else:
        backend = _bytes(Tokenizer(models.Unigram()))
        backend.train_from_iterator(iter(texts), trainers.UnigramTrainer(initial_alphabet=alphabet, **options))
        backend = _canonical(backend)
    ids = [(token, backend.token_to_id(token)) for token in _SPECIAL]
    backend.post_processor = processors.TemplateProcessing(single=_FRAMES[frame], special_tokens=ids)
    names = {"cls_token": BOS, "sep_token": EOS} if frame == "classifier" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **names,
    )


def _bytes(backend: Tokenizer) -> Tokenizer:
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _canonical(backend: Tokenizer) -> Tokenizer:
    """Return the unigram tokenizer in one fixed form.

    Its trainer sums in the order of a hash table, so scores differ in the last digits from run to run, and bytes that
    the texts lack get the lowest score plus a random step.
    """
    document = json.loads(backend.to_str())
    special, pieces = document["model"]["vocab"][: len(_SPECIAL)], document["model"]["vocab"][len(_SPECIAL) :]
    lowest = min(score for _, score in pieces)
    steps = lowest + 1e-4 * 257
    fixed = [(piece, round(lowest if len(piece) == 1 and score < steps else score, 6)) for piece, score in pieces]
    document["model"]["vocab"] = special + sorted(fixed, key=lambda entry: (-entry[1], entry[0]))
    return Tokenizer.from_str(json.dumps(document))
