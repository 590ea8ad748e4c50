"""What all rows begin with is run once; every row then attends to its keys and values where they lie.

Attention over [context, row] is split in two: all rows' queries against the one shared context, unmasked, and each
row against itself, causal. The halves are merged by their log-sum-exp (Juravsky et al. 2024, "Hydragen"; the merge is
that of FlashAttention, Dao et al. 2022). Nothing of the context is copied per row, which is what costs in a repeated
cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from distillctl.data.views import shared_length

_NAME = "distillctl_shared_context"
_PLAIN = {"sliding_window", "position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class Unsupported(Exception):
    """The model's attention does something the split does not know; the plain forward is right."""


def common_prefix(views: Sequence[Sequence[int]]) -> int:
    """Length of the token prefix that all views share, leaving every view at least one token of its own."""
    return max(0, min(shared_length(views), min(map(len, views)) - 1))


class SharedContext:
    """Keys and values of the shared context, per layer [1, H_kv, P, D], and attention that reads them."""

    def __init__(self, model: PreTrainedModel, context: Sequence[int]) -> None:
        self.model = model
        self.length = len(context)
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([list(context)], device=model.device)
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._layers: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
            if key is None or value is None:
                raise Unsupported("a layer keeps no keys and values")
            self._layers.append((key, value))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block the model's attention sees the shared context before every row."""
        before = self.model.config._attn_implementation
        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
        self.model.set_attn_implementation(_NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def positions(self, rows: int, length: int) -> Tensor:
        """Position ids [rows, length] of the tokens that follow the context."""
        return (self.length + torch.arange(length, device=self.model.device)).expand(rows, -1)

    def _attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """query [B, H, S, D], key and value [B, H_kv, S, D] of the rows alone → [B, S, H, D]."""
        if unknown := {name for name, given in options.items() if given is not None} - _PLAIN:
            raise Unsupported(f"attention takes {sorted(unknown)}")
        context_key, context_value = self._layers[int(module.layer_idx)]  # type: ignore[arg-type]
        rows, heads, length, size = query.shape
        groups = heads // context_key.shape[1]
        # Every query of every row and of every head that shares a key head, as one long sequence.
        flat = (
            query.view(rows, -1, groups, length, size)
            .permute(1, 2, 0, 3, 4)
            .reshape(1, -1, groups * rows * length, size)
        )
        visible = self._window(options.get("sliding_window"), context_key.shape[2], length, groups * rows, query.device)
        far, far_mass = attention(flat, context_key, context_value, scale=scaling, mask=visible)
        far = far.view(-1, groups, rows, length, size).permute(2, 0, 1, 3, 4).reshape(query.shape)
        far_mass = far_mass.view(-1, groups, rows, length).permute(2, 0, 1, 3).reshape(query.shape[:3])
        near, near_mass = attention(
            query,
            key.repeat_interleave(groups, 1),
            value.repeat_interleave(groups, 1),
            scale=scaling,
            causal=True,
        )
        merged = torch.lerp(near, far, torch.sigmoid(far_mass - near_mass).unsqueeze(-1).to(near.dtype))
        return merged.transpose(1, 2).contiguous(), None

    def _window(self, window: int | None, kept: int, length: int, repeats: int, device: torch.device) -> Tensor | None:
        """Bool [repeats × length, kept]: which context keys a sliding window lets each row position see."""
        if window is None or window >= self.length + length:
            return None
        if window <= length:
            raise Unsupported(f"a row of {length} tokens is longer than the sliding window of {window}")
        position = torch.arange(length, device=device).unsqueeze(1)
        index = torch.arange(kept, device=device).unsqueeze(0)
        return (index > position - window + kept).repeat(repeats, 1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scale) v [B, H, S, D] and its log-sum-exp [B, H, S] (float32, natural log)."""
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    if query.device.type == "cpu":
        bias = None if mask is None else torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        output, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return output, mass
    return plain_attention(query, key, value, scale=scale, mask=mask, causal=causal)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """As `attention`, in elementary operations: for devices without a fused kernel that gives the log-sum-exp."""
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    mass = scores.logsumexp(-1)
    return ((scores - mass.unsqueeze(-1)).exp().to(value.dtype) @ value), mass
