"""Return logits at chosen positions only, so that the wide head computes no others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

AT_ONCE = 2**26
"""Maximal number of logits in one forward pass, unless a single row has more."""


def logits_at(model: PreTrainedModel, input_ids: Tensor, rows: Tensor, columns: Tensor, **options: Any) -> Tensor:
    """Return logits [N, V] of ``input_ids`` [B, S] at the places (``rows``, ``columns``), int64 [N] each.

    The model's own forward runs, including its changes to logits after the head (Gemma's soft cap, Granite's scaling).
    """
    head = model.get_output_embeddings()

    def keep_only(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][rows, columns].unsqueeze(0),)

    hook = head.register_forward_pre_hook(keep_only)
    try:
        logits: Tensor = model(input_ids=input_ids, use_cache=False, **options).logits[0]
        return logits
    finally:
        hook.remove()
