"""Compute log Pr(label words | view) for every label, in batches by length, with the shared context run once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distillctl.data import batching
from distillctl.teachers import finite
from distillctl.teachers.exclusive import exclusive
from distillctl.teachers.shared_context import SharedContext

MIN_SHARED = 16
"""Shortest shared context, in tokens, that is worth a pass of its own."""
Answers = Sequence[Sequence[int]]
"""Token ids of each of the K labels."""


@dataclass(frozen=True)
class LabelScores:
    """Scores of the labels after each view.

    log_probs: float32 [N, K], natural logs of exclusive labels (`teachers.exclusive`), not normalised over labels.
    mass: float32 [N], Σ_k Pr(label k). tokens: number of view tokens that were computed. seen: bool [N, K], False if
    the log-probability is an upper bound that is left out of the mass; None if all are exact. next_ids, next_log_probs:
    int32 and float32 [N], the likeliest token after each view.
    """

    log_probs: np.ndarray
    mass: np.ndarray
    tokens: int
    seen: np.ndarray | None = None
    next_ids: np.ndarray | None = None
    next_log_probs: np.ndarray | None = None
    next_tokens: list[str] | None = None
    """The likeliest tokens as text."""


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    views: Sequence[Sequence[int]],
    answers: Sequence[Answers],
    *,
    batch_tokens: int,
    vocabulary: int | None = None,
    context: SharedContext | None = None,
) -> LabelScores:
    """Score the labels after each view. views: token ids without the context's. answers: the labels' ids after each
    view.

    Probabilities cover the first ``vocabulary`` ids, because some models pad their output with ids that are not tokens.

    An answer of several tokens is scored by the chain rule along its stem, which is all but its last token. Answers
    that share a stem, or whose stem begins another stem, share a sequence. Padding is on the right: causal attention
    ignores it, and sliding windows stay exact.
    """
    same = [tuple(map(tuple, row)) for row in answers]
    stems = {labels: distinct_stems(labels) for labels in set(same)}
    sequences = [(row, stem) for row in range(len(views)) for stem in stems[same[row]]]
    lengths = [len(views[row]) + len(stem) for row, stem in sequences]
    out = _Scores(np.empty((len(views), len(answers[0])), np.float32), np.zeros(len(views), np.int32),
                  np.zeros(len(views), np.float32))  # fmt: skip
    with context.attached() if context else nullcontext():
        for batch in batching.by_length(lengths, max_rows=batch_tokens, max_tokens=batch_tokens):
            _score_batch(model, [sequences[i] for i in batch], views, same, vocabulary, context, out)
    for labels in stems:
        rows = [row for row, row_labels in enumerate(same) if row_labels == labels]
        out.log_probs[rows] = exclusive(out.log_probs[rows], labels)
    mass = np.exp(out.log_probs.astype(np.float64)).sum(-1).astype(np.float32)
    return LabelScores(
        out.log_probs, mass, sum(map(len, views)), next_ids=out.next_ids, next_log_probs=out.next_log_probs
    )


@dataclass(frozen=True)
class _Scores:
    """Arrays that batches fill: log_probs [N, K], and the likeliest next token and its log-probability [N]."""

    log_probs: np.ndarray
    next_ids: np.ndarray
    next_log_probs: np.ndarray


def distinct_stems(answers: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the stems (answers without their last tokens) that begin no longer stem."""
    stems = sorted({tuple(answer[:-1]) for answer in answers})
    return [s for s in stems if not any(len(t) > len(s) and t[: len(s)] == s for t in stems)]


def _score_batch(
    model: PreTrainedModel,
    batch: list[tuple[int, tuple[int, ...]]],
    views: Sequence[Sequence[int]],
    answers: Sequence[Answers],
    vocabulary: int | None,
    context: SharedContext | None,
    out: _Scores,
) -> None:
    ids = pad_sequence([torch.tensor([*views[row], *stem]) for row, stem in batch], batch_first=True).to(model.device)
    # The positions whose logits predict an answer token; by length, a batch has few distinct ones.
    wanted = sorted({len(views[row]) - 1 + step for row, stem in batch for step in range(len(stem) + 1)})
    column = {position: index for index, position in enumerate(wanted)}
    extra = {"position_ids": context.positions(*ids.shape)} if context else {}
    logits = model(
        input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(wanted, device=ids.device), **extra
    ).logits
    log_probs = finite.log_softmax(logits[..., :vocabulary])
    for index, (row, stem) in enumerate(batch):
        start = len(views[row]) - 1
        best, token = log_probs[index, column[start]].max(-1)
        out.next_log_probs[row], out.next_ids[row] = float(best), int(token)
        for k, answer in enumerate(answers[row]):
            if stem[: len(answer) - 1] == tuple(answer[:-1]):
                steps = [log_probs[index, column[start + step], token] for step, token in enumerate(answer)]
                out.log_probs[row, k] = float(torch.stack(steps).sum())
