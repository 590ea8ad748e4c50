"""Split a language model into its hidden states and the head that computes logits from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillctl.errors import RecipeError

TOLERANCE = 1e-4
"""Tolerance of `check_head`, relative to the largest logit."""


@dataclass(frozen=True, eq=False)
class Head:
    """logits = softcap(scale · h Wᵀ + b); softcap(x) = c tanh(x / c), or x without one (Gemma 2 has one).

    weight [V, D] and bias [V] are the model's own tensors: gradients and updates are shared.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V]."""
        scaled = hidden * self.scale if self.scale != 1 else hidden
        return self.capped(nn.functional.linear(scaled, self.weight, self.bias))

    def capped(self, logits: Tensor) -> Tensor:
        """Apply the softcap."""
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a decoder or encoder–decoder; `check_head` verifies that it is complete."""
    linear: Any = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    if not isinstance(linear, nn.Linear):
        raise _refused(model, "it has no linear head")
    biases = [bias for bias in (linear.bias, getattr(model, "final_logits_bias", None)) if bias is not None]
    return Head(
        weight=linear.weight,
        bias=biases[0].flatten() if biases else None,
        scale=_scale(model, config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def hidden_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the head's input, [B, T, D], at each token of a decoder or of an encoder–decoder's decoder_input_ids.

    inputs: the model's own. This skips the model's forward and what accelerate adds to it: for mixed precision call it
    within ``accelerator.autocast()``.
    """
    options: dict[str, Any] = {**inputs, "use_cache": False}
    if model.base_model is not model:
        states: Tensor = model.base_model(**options).last_hidden_state
        return states
    # T5 and similar models have no base model around encoder and decoder.
    decoder_ids, mask = options.pop("decoder_input_ids"), options.get("attention_mask")
    decoder_mask = options.pop("decoder_attention_mask", None)
    encoded = model.get_encoder()(**options).last_hidden_state
    decoder: nn.Module = model.get_decoder()
    decoded: Tensor = decoder(
        input_ids=decoder_ids,
        attention_mask=decoder_mask,
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return decoded


@torch.no_grad()
def check_head(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """Raise RecipeError unless the head, applied to the hidden states, returns the model's own logits."""
    training = model.training
    model.train(False)
    try:
        expected = model(**inputs).logits.float()
        computed = head_of(model)(hidden_states(model, inputs)).float()
    finally:
        model.train(training)
    difference = (computed - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    if not difference <= TOLERANCE:
        raise _refused(
            model, f"applying its head to its hidden states gives other logits (they differ by {difference:.1e})"
        )


def _scale(model: PreTrainedModel, config: Any) -> float:
    if getattr(config, "scale_decoder_outputs", False):  # T5
        return 1 / math.sqrt(config.d_model)
    if hasattr(config, "logits_scaling"):  # Granite
        return 1 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", 1.0))  # Cohere


def _refused(model: PreTrainedModel, why: str) -> RecipeError:
    return RecipeError(
        f"a {model.config.model_type} cannot be trained here: {why}",
        where="student",
        next="choose another architecture, such as llama, qwen3, gemma3_text, t5 or marian",
    )
