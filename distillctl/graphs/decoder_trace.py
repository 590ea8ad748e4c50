"""Trace a decoder to one ONNX graph for the view (empty past) and each new token, under optimum's names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from distillctl.graphs import rotary_tables, tracing
from distillctl.graphs.tracing import Axes, Part
from distillctl.run_dir.facts import GraphFacts

GRAPH = "model.onnx"
_CACHES = ("key", "value")
_BATCH, _PAST, _NEW = 2, 3, 4
"""Sizes to trace with: none is 0 or 1, no two are equal."""


class CausalDecoder(Part):
    """A decoder-only model as one graph for the view and for each further token."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past: list[tuple[Tensor, Tensor]],
        position_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Map int64 [B, T], mask [B, T' + T] and each layer's keys and values [B, H, T', d] to logits [B, T, V] and the
        keys and values of T' + T tokens.
        """
        # Without the config, the cache keeps every position, also in layers with a sliding window, which the mask
        # implements.
        cache = DynamicCache([(keys, values) for keys, values in past])
        positions = {} if position_ids is None else {"position_ids": position_ids}
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **positions
        )
        named = {"logits": output.logits}
        for index, (keys, values) in enumerate(tracing.keys_and_values(cache)):
            named |= {f"present.{index}.key": keys, f"present.{index}.value": values}
        return named


def export(model: PreTrainedModel, folder: Path, opset: int | None = None, max_length: int | None = None) -> GraphFacts:
    """Write ``folder``/model.onnx.

    max_length: maximal number of tokens of view and response, where rotary tables end. Raises UnavailableError if the
    model's past has more than keys and values, RecipeError if the opset is not available.
    """
    inputs = _samples(model)
    with rotary_tables.shortened(model, max_length):
        program = tracing.trace(CausalDecoder(model), inputs, opset)
    tracing.name_past(program.graph, _CACHES)
    return tracing.save(program, folder / GRAPH, _axes(len(inputs["past"])))


def _axes(layers: int) -> Axes:
    axes: dict[str, tuple[str | None, ...]] = {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "past_sequence + sequence"),
        "position_ids": ("batch", "sequence"),
        "logits": ("batch", "sequence", None),
    }
    for layer in range(layers):
        for name in _CACHES:
            axes[f"past_key_values.{layer}.{name}"] = ("batch", None, "past_sequence", None)
            axes[f"present.{layer}.{name}"] = ("batch", None, "past_sequence + sequence", None)
    return axes


@torch.no_grad()
def _samples(model: PreTrainedModel) -> dict[str, Any]:
    """Return inputs to trace with."""
    length = _PAST + _NEW
    ids = torch.arange(_BATCH * length).reshape(_BATCH, length) % model.config.get_text_config().vocab_size
    warm = model.eval()(input_ids=ids[:, :_PAST], past_key_values=DynamicCache(), use_cache=True).past_key_values
    inputs = {
        "input_ids": ids[:, _PAST:],
        "attention_mask": torch.ones_like(ids),
        "past": tracing.keys_and_values(warm),
    }
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(_PAST, length).expand(_BATCH, _NEW)
    return inputs
