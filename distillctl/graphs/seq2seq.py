"""Trace an encoder–decoder to two ONNX graphs that optimum's ORTModelForSeq2SeqLM can load.

`encoder_model.onnx` returns the encoder's states. `decoder_model_merged.onnx` takes them at every step, and computes
the cross-attention's keys and values of those positions that its past lacks: all at the first step, none later. So one
graph serves both, and each layer's weights are stored once.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from distillctl.graphs import tracing
from distillctl.graphs.tracing import Axes, Part
from distillctl.run_dir.facts import GraphFacts

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
_CACHES = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
_BATCH, _ENCODER, _PAST_ENCODER, _PAST, _NEW = 2, 9, 5, 3, 4
"""Sizes to trace with: none is 0 or 1, no two are equal."""


class Encoder(Part):
    """The encoder as a graph."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Map int64 [B, S] to states, float32 [B, S, D]."""
        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return {"last_hidden_state": states}


class Seq2SeqDecoder(Part):
    """The decoder as one graph for the first token and for each further one."""

    def forward(
        self,
        input_ids: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        past: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Map int64 [B, T], encoder states [B, S, D] and each layer's keys and values to logits [B, T, V] and all keys
        and values.

        The past has T' tokens and S' ≤ S encoder positions, [B, H, T' or S', d]; the result has T' + T and S.
        """
        rest = encoder_hidden_states[:, past[0][2].shape[2] :]
        # Running one token fills a cache with keys and values of the rest. Everything else it computes reaches no
        # output, and is dropped from the graph.
        filled = self.model(encoder_outputs=(rest,), decoder_input_ids=input_ids[:, :1], use_cache=True)
        new = tracing.keys_and_values(filled.past_key_values.cross_attention_cache)
        cross = [
            (torch.cat([layer[2], keys], 2), torch.cat([layer[3], values], 2))
            for layer, (keys, values) in zip(past, new, strict=True)
        ]
        cache = EncoderDecoderCache(DynamicCache([layer[:2] for layer in past]), DynamicCache(cross))
        output = self.model(
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            past_key_values=cache,
            use_cache=True,
        )
        named = {"logits": output.logits}
        self_attention = tracing.keys_and_values(cache.self_attention_cache)
        for index, tensors in enumerate(zip(self_attention, cross, strict=True)):
            present = zip(_CACHES, itertools.chain(*tensors), strict=True)
            named |= {f"present.{index}.{name}": tensor for name, tensor in present}
        return named


def export(model: PreTrainedModel, folder: Path, opset: int | None = None) -> GraphFacts:
    """Write both graphs to ``folder``. Return the decoder's description.

    Raises UnavailableError if the decoder's past has more than keys and values, RecipeError if the opset is not
    available.
    """
    encoder, decoder = _samples(model)
    program = tracing.trace(Encoder(model), encoder, opset)
    positions = ("batch", "encoder_sequence")
    tracing.save(
        program,
        folder / ENCODER,
        {**dict.fromkeys(encoder, positions), "last_hidden_state": (*positions, None)},
    )
    program = tracing.trace(Seq2SeqDecoder(model), decoder, opset)
    tracing.name_past(program.graph, _CACHES)
    return tracing.save(program, folder / DECODER, _decoder_axes(len(decoder["past"])))


def _decoder_axes(layers: int) -> Axes:
    axes: dict[str, tuple[str | None, ...]] = {
        "input_ids": ("batch", "sequence"),
        "encoder_attention_mask": ("batch", "encoder_sequence"),
        "encoder_hidden_states": ("batch", "encoder_sequence", None),
        "logits": ("batch", "sequence", None),
    }
    lengths = {
        "decoder": ("past_sequence", "past_sequence + sequence"),
        "encoder": ("past_encoder_sequence", "encoder_sequence"),
    }
    for layer in range(layers):
        for name in _CACHES:
            past, present = lengths[name.split(".")[0]]
            axes[f"past_key_values.{layer}.{name}"] = ("batch", None, past, None)
            axes[f"present.{layer}.{name}"] = ("batch", None, present, None)
    return axes


@torch.no_grad()
def _samples(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return inputs to trace encoder and decoder with."""
    ids = torch.arange(_BATCH * _ENCODER).reshape(_BATCH, _ENCODER) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    warm = model.eval()(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :_PAST], use_cache=True)
    cache = warm.past_key_values
    self_attention = tracing.keys_and_values(cache.self_attention_cache)
    cross = tracing.keys_and_values(cache.cross_attention_cache)
    past = [
        (*layer, *(tensor[:, :, :_PAST_ENCODER] for tensor in encoder))
        for layer, encoder in zip(self_attention, cross, strict=True)
    ]
    decoder = {
        "input_ids": ids[:, :_NEW],
        "encoder_attention_mask": mask,
        "encoder_hidden_states": warm.encoder_last_hidden_state,
        "past": past,
    }
    return {"input_ids": ids, "attention_mask": mask}, decoder
