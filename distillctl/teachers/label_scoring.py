"""log Pr(label words | view) for every label, batched by length, with the shared context run once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distillctl.data import batching
from distillctl.teachers.shared_context import SharedContext

MIN_SHARED = 16
"""Shorter shared contexts are not worth a pass of their own."""


@dataclass(frozen=True)
class LabelScores:
    """log_probs: float32 [N, K], natural logs, not normalised over labels. mass: float32 [N], Σ_k Pr(label k). tokens:
    of the views, as many as were run. seen: bool [N, K], False where the log-probability is an upper bound and is left
    out of the mass; None where all are exact."""

    log_probs: np.ndarray
    mass: np.ndarray
    tokens: int
    seen: np.ndarray | None = None


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    views: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    vocabulary: int | None = None,
    context: SharedContext | None = None,
) -> LabelScores:
    """Score every answer (token ids) after every view (token ids, without ``context``'s tokens).

    Probabilities are over the first ``vocabulary`` ids: what some models pad their output with is no token.

    An answer of several tokens is scored by the chain rule along its stem (all but its last token); answers that share
    a stem, or whose stem begins another's, share a sequence. Right padding only: what pads follows every real token, so
    causality hides it, and sliding windows stay exact.
    """
    stems = distinct_stems(answers)
    sequences = [(row, stem) for row in range(len(views)) for stem in stems]
    lengths = [len(views[row]) + len(stem) for row, stem in sequences]
    log_probs = torch.empty(len(views), len(answers))
    with context.attached() if context else nullcontext():
        for batch in batching.by_length(lengths, max_rows=batch_tokens, max_tokens=batch_tokens):
            _score_batch(model, [sequences[i] for i in batch], views, answers, vocabulary, context, log_probs)
    return LabelScores(log_probs.numpy(), log_probs.exp().sum(-1).numpy(), sum(map(len, views)))


def distinct_stems(answers: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The stems (answer without its last token) that begin no longer stem."""
    stems = sorted({tuple(answer[:-1]) for answer in answers})
    return [s for s in stems if not any(len(t) > len(s) and t[: len(s)] == s for t in stems)]


def _score_batch(
    model: PreTrainedModel,
    batch: list[tuple[int, tuple[int, ...]]],
    views: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    vocabulary: int | None,
    context: SharedContext | None,
    out: torch.Tensor,
) -> None:
    ids = pad_sequence([torch.tensor([*views[row], *stem]) for row, stem in batch], batch_first=True).to(model.device)
    # The positions whose logits predict an answer token; by length, a batch has few distinct ones.
    wanted = sorted({len(views[row]) - 1 + step for row, stem in batch for step in range(len(stem) + 1)})
    column = {position: index for index, position in enumerate(wanted)}
    extra = {"position_ids": context.positions(*ids.shape)} if context else {}
    logits = model(
        input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(wanted, device=ids.device), **extra
    ).logits
    log_probs = logits[..., :vocabulary].float().log_softmax(-1).cpu()
    for index, (row, stem) in enumerate(batch):
        for k, answer in enumerate(answers):
            if stem[: len(answer) - 1] == tuple(answer[:-1]):
                start = len(views[row]) - 1
                out[row, k] = sum(log_probs[index, column[start + step], token] for step, token in enumerate(answer))
