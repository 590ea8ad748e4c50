"""Tiny models that write, and their byte-level BPE tokenizer, built in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXT = "the a river king book city sea old young long far of in runs reads writes sees to and but never café naïve"
WORDS = TEXT.split()
PAD, EOS = "<pad>", "<eos>"
PAD_ID, EOS_ID = 0, 1
VOCABULARY = 300
"""2 special tokens, 256 bytes, 42 merges."""

# Heads of 16 and hidden sizes that are multiples of 32: what onnxruntime-genai's builder and its int4 blocks ask for.
_DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 96, "max_position_embeddings": 128},
    "qwen2": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 96, "max_position_embeddings": 128},
    "gemma3_text": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}
    | {"intermediate_size": 96, "max_position_embeddings": 128, "head_dim": 16, "sliding_window": 8}
    | {"final_logit_softcapping": 8.0},
    "mistral": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 96, "max_position_embeddings": 128},
    "phi3": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 96, "max_position_embeddings": 128},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
_SEQ2SEQ: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4},
    "marian": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    | {"decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 128},
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of 1 to 10 words, some of them with accents."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choice(WORDS, generator.integers(1, 11)))] = None
    return list(found)


_default_texts = texts


def bpe_tokenizer(
    texts: Sequence[str] | None = None, vocabulary: int = VOCABULARY, *, appends_eos: bool = False
) -> PreTrainedTokenizerFast:
    """As GPT-2's, with `<pad>` 0 and `<eos>` 1. ``appends_eos``: to what it encodes, as T5's and Marian's do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_default_texts(200) if texts is None else texts, trainer)
    if appends_eos:
        backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, model_max_length=128)


def decoder(kind: str = "llama", vocabulary: int = VOCABULARY, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A random causal model with weights wide enough for greedy answers to vary. Of its own it ends with `<eos>`."""
    return _model(AutoModelForCausalLM, kind, seed, {"vocab_size": vocabulary, **_DECODERS[kind], **config}, gain=1.5)


def seq2seq(kind: str = "t5", vocabulary: int = VOCABULARY, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A random encoder–decoder, as `decoder`; decoding starts with `<pad>`, as T5 and Marian do."""
    sizes = {"vocab_size": vocabulary, "decoder_start_token_id": PAD_ID, **_SEQ2SEQ[kind], **config}
    if kind == "marian":
        sizes |= {"decoder_vocab_size": vocabulary, "forced_eos_token_id": None, "scale_embedding": True}
    return _model(AutoModelForSeq2SeqLM, kind, seed, sizes, gain=0.9 if kind == "marian" else 1.5)


def _model(auto: Any, kind: str, seed: int, sizes: dict[str, Any], gain: float) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"tie_word_embeddings": False} | sizes  # tied, a random model repeats its last token
    config = AutoConfig.for_model(kind, bos_token_id=EOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, **sizes)
    model: PreTrainedModel = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:  # Marian's sinusoidal positions stay
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / parameter.shape[1] ** 0.5)
    return model
