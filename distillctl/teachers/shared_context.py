"""Compute the context that all rows share once; every row then attends to its keys and values in place.

Attention over [context, row] is split in two: all rows' queries against the one shared context, unmasked, and each row
against itself, causal. The halves are merged by their log-sum-exp (Juravsky et al. 2024, "Hydragen"; the merge is that
of FlashAttention, Dao et al. 2022). The context is never copied per row, which is the cost of a repeated cache.
`BatchKeyValues` keeps the rows' own keys and values while they grow token by token.
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
_ROOM = 32
"""Number of slots that are added at a time for rows to grow into."""


class UnsupportedAttention(Exception):
    """The model's attention does something that the split does not support; use the plain forward pass."""


def common_prefix(views: Sequence[Sequence[int]]) -> int:
    """Return the length of the token prefix that all views share, which leaves every view at least one own token."""
    return max(0, min(shared_length(views), min(map(len, views)) - 1))


class BatchKeyValues:
    """Keys and values of a batch's own tokens, per layer [B, H_kv, slots, D]; a token's slot is its place in its row.

    Rows are padded on the right in their first forward pass and grow into their padding, one token per pass.
    """

    def __init__(self, lengths: Tensor) -> None:
        """lengths: int64 [B], own tokens of each row in the first forward pass."""
        self.longest = int(lengths.max())
        """Slots in use after this forward pass."""
        self.positions = torch.arange(self.longest, device=lengths.device).unsqueeze(0)
        """Places in their rows of this forward pass' tokens, int64 [1, S] in the first one, [B, 1] in the others."""
        self.grown = False
        """Whether the first forward pass is done."""
        self._lengths = lengths
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def grow(self) -> None:
        """Prepare for a forward pass with one more token for every row."""
        self.grown = True
        self.positions = self._lengths.unsqueeze(1)
        self._lengths = self._lengths + 1
        self.longest = int(self._lengths.max())

    def select(self, index: Tensor) -> None:
        """Keep only these rows, int64 [B']; a row may be repeated."""
        self._lengths = self._lengths[index]
        self._layers = {layer: (key[index], value[index]) for layer, (key, value) in self._layers.items()}

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store this forward pass's keys and values, and return those of all slots in use."""
        if not self.grown:
            self._layers[layer] = key, value
            return key, value
        keys, values = self._layers[layer]
        if (short := self.longest - keys.shape[2]) > 0:
            keys, values = (torch.nn.functional.pad(kept, (0, 0, 0, short + _ROOM)) for kept in (keys, values))
            self._layers[layer] = keys, values
        row, slot = torch.arange(len(key), device=key.device), self.positions[:, 0]
        keys[row, :, slot], values[row, :, slot] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, : self.longest], values[:, :, : self.longest]


class SharedContext:
    """Keys and values of the shared context, per layer [1, H_kv, P, D], and attention that reads them."""

    def __init__(self, model: PreTrainedModel, context: Sequence[int]) -> None:
        self.model = model
        self.length = len(context)
        self._rows: BatchKeyValues | None = None
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([list(context)], device=model.device)
        with torch.inference_mode():
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._layers: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
            if key is None or value is None:
                raise UnsupportedAttention("a layer keeps no keys and values")
            self._layers.append((key, value))

    @contextmanager
    def attached(self, rows: BatchKeyValues | None = None) -> Iterator[None]:
        """Let the model's attention see the shared context before every row, within the block.

        rows: keys and values to keep between forward passes. None if each pass sees whole rows.
        """
        before, self._rows = self.model.config._attn_implementation, rows
        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
        self.model.set_attn_implementation(_NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)
            self._rows = None

    def positions(self, rows: int, length: int) -> Tensor:
        """Return position ids [rows, length] of the tokens that follow the context."""
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
            raise UnsupportedAttention(f"attention takes {sorted(unknown)}")
        layer, window = int(module.layer_idx), options.get("sliding_window")  # type: ignore[arg-type]
        rows = self._rows
        if rows is not None:
            key, value = rows.update(layer, key, value)
        positions = rows.positions if rows is not None else torch.arange(key.shape[2], device=key.device).unsqueeze(0)
        if window is not None and window >= self.length + key.shape[2]:
            window = None
        far, far_mass = self._context(layer, query, positions, scaling, window)
        if rows is not None and rows.grown:
            near, near_mass = _next_token(query, key, value, positions, scaling, window)
        else:
            near, near_mass = _whole_row(query, key, value, scaling, window)
        merged = torch.lerp(near, far, torch.sigmoid(far_mass - near_mass).unsqueeze(-1).to(near.dtype))
        return merged.transpose(1, 2).contiguous(), None

    def _context(
        self, layer: int, query: Tensor, positions: Tensor, scaling: float | None, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention of all queries to the shared context, and its log-sum-exp."""
        key, value = self._layers[layer]
        rows, heads, length, size = query.shape
        groups = heads // key.shape[1]
        # Every query of every row and of every head that shares a key head, as one long sequence.
        flat = (
            query.view(rows, -1, groups, length, size)
            .permute(1, 2, 0, 3, 4)
            .reshape(1, -1, groups * rows * length, size)
        )
        visible = blind = None
        if window is not None:
            # A sliding layer keeps only the last keys; a key's distance to the context's end counts down to 1.
            distance = torch.arange(key.shape[2], 0, -1, device=query.device)
            seen = distance < window - positions.expand(rows, -1).unsqueeze(-1)
            visible = seen.expand(groups, -1, -1, -1).reshape(-1, key.shape[2])
            blind = ~seen[..., -1].unsqueeze(1)
        far, mass = attention(flat, key, value, scale=scaling, mask=visible)
        far = far.view(-1, groups, rows, length, size).permute(2, 0, 1, 3, 4).reshape(query.shape)
        mass = mass.view(-1, groups, rows, length).permute(2, 0, 1, 3).reshape(query.shape[:3])
        if blind is not None:  # far beyond the context its mass is 0; kernels differ for an empty sum
            far, mass = far.masked_fill(blind.unsqueeze(-1), 0.0), mass.masked_fill(blind, -torch.inf)
        return far, mass


def _whole_row(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Compute the causal attention of rows to themselves, and its log-sum-exp."""
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    band = None
    if window is not None and window < length:
        band = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return attention(query, key, value, scale=scaling, mask=band, causal=band is None)


def _next_token(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Compute the attention of each row's newest token, at positions [B, 1], to its row's slots, and its
    log-sum-exp."""
    slots = torch.arange(key.shape[2], device=query.device)
    seen = slots <= positions
    if window is not None:
        seen &= slots > positions - window
    # Heads that share a key head take the place of the tokens of a longer query.
    folded = query.view(len(query), key.shape[1], -1, query.shape[-1])
    near, mass = attention(folded, key, value, scale=scaling, mask=seen[:, None, None])
    return near.reshape(query.shape), mass.reshape(query.shape[:3])


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return softmax(q kᵀ · scale) v [B, H, S, D] and its log-sum-exp [B, H, S] (float32, natural log)."""
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
    """Do what `attention` does with elementary operations, for devices whose fused kernel gives no log-sum-exp."""
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    mass = scores.logsumexp(-1)
    return ((scores - mass.unsqueeze(-1)).exp().to(value.dtype) @ value), mass
