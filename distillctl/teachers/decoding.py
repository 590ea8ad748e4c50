"""Decode a batch of rows by one token per forward pass, with a shared context or with the model's own cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from distillctl.teachers.selected_logits import logits_at
from distillctl.teachers.shared_context import BatchKeyValues, SharedContext


class Batch(Protocol):
    """A batch under decoding. `start` and `step` return the logits [B, V] of each row's next token."""

    def start(self, views: Sequence[Sequence[int]]) -> Tensor:
        """Read the views; return the logits of the first tokens, [B, V]."""

    def select(self, index: Tensor) -> None:
        """Keep only these rows, int64 [B']; a row may be repeated."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row. tokens: int64 [B, 1]."""


@contextmanager
def batch(
    model: PreTrainedModel, views: Sequence[Sequence[int]], context: SharedContext | None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batch after its first forward pass, and the logits [B, V]. views: token ids without the context's."""
    if context is None:
        plain = _PlainBatch(model)
        yield plain, plain.start(views)
        return
    lengths = torch.tensor(list(map(len, views)), device=model.device)
    rows = BatchKeyValues(lengths)
    with context.attached(rows):
        shared = _SharedBatch(context, rows)
        yield shared, shared.start(views)


class _SharedBatch:
    """Padded on the right; see `BatchKeyValues`."""

    def __init__(self, context: SharedContext, rows: BatchKeyValues) -> None:
        self._context, self._rows = context, rows

    def start(self, views: Sequence[Sequence[int]]) -> Tensor:
        """Read the views; return the logits of the first tokens, [B, V]."""
        device = self._context.model.device
        ids = pad_sequence([torch.tensor(view) for view in views], batch_first=True).to(device)
        last = torch.tensor([len(view) - 1 for view in views], device=device)
        each = torch.arange(len(views), device=device)
        return logits_at(self._context.model, ids, each, last, position_ids=self._context.positions(*ids.shape))

    def select(self, index: Tensor) -> None:
        self._rows.select(index)

    def step(self, tokens: Tensor) -> Tensor:
        self._rows.grow()
        positions = self._context.length + self._rows.positions
        logits: Tensor = self._context.model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        return logits[:, -1]


class _PlainBatch:
    """The model's own attention and cache. Padded on the left, so that all rows grow at the same slot."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._mask = torch.empty(0)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def start(self, views: Sequence[Sequence[int]]) -> Tensor:
        """Read the views; return the logits of the first tokens, [B, V]."""
        width = max(map(len, views))
        ids = torch.tensor([[0] * (width - len(view)) + list(view) for view in views])
        mask = torch.tensor([[0] * (width - len(view)) + [1] * len(view) for view in views])
        self._mask = mask.to(self._model.device)
        return self._forward(ids.to(self._model.device), (self._mask.cumsum(-1) - 1).clamp(min=0))

    def select(self, index: Tensor) -> None:
        self._cache.reorder_cache(index.long())  # type: ignore[arg-type]  # what beam search calls: every kind of layer has it
        self._mask = self._mask[index]

    def step(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens, self._mask.sum(-1, keepdim=True) - 1)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra = {"position_ids": positions} if self._takes_positions else {}
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        ).logits
        return logits[:, -1]
