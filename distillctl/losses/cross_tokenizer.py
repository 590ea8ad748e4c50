"""Compare models whose tokenizers differ: probabilities by rank, positions by order.

Universal Logit Distillation (Boizard et al. 2024, "Towards Cross-Tokenizer Distillation", section 3.2): the i-th
likeliest token of one side is compared with the i-th likeliest of the other, whatever they are. The two tokenize a text
into different numbers of tokens. As in the authors' code, positions are paired in order up to the end of the shorter
side; the student's positions beyond it have no counterpart and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from distillctl.losses.targets import AlignedTargets, DenseTargets, TopKTargets


def uld(teacher: Tensor, student: Tensor, log_tail: Tensor | None = None) -> Tensor:
    """Return Σ_i |p_(i) − q_(i)| [...] over sorted probabilities, from 0 to 2; the smaller vocabulary is padded with
    zeros.

    teacher: log-probabilities [..., V_t] in any order; student: [..., V_s]. With ``log_tail`` [...] the teacher's are
    its k likeliest, and log_tail is the mass of all others, which is compared with the student's mass beyond its own k.
    That is never more than the whole sum (triangle inequality).
    """
    p, q = teacher.exp(), student.exp()
    if log_tail is not None:
        p = p.sort(-1, descending=True).values
        top = q.topk(min(p.shape[-1], q.shape[-1]), -1).values
        beyond = (log_tail.exp() - (1 - top.sum(-1)).clamp_min(0)).abs()
        return _by_rank(p, top) + beyond
    return _by_rank(*(side.sort(-1, descending=True).values for side in (p, q)))


def align(
    teacher: DenseTargets | TopKTargets, lengths: Sequence[int], student_ids: Sequence[Sequence[int]]
) -> AlignedTargets:
    """Pair each of the student's response tokens with the teacher's position at the same place.

    teacher: the responses' positions in the teacher's tokens, one response after the other, ``lengths`` of them each.
    student_ids: the same responses in the student's tokens. Returns one row per student token.
    """
    starts = [sum(lengths[:row]) for row in range(len(lengths))]
    index = [
        start + min(place, length - 1)
        for start, length, ids in zip(starts, lengths, student_ids, strict=True)
        for place in range(len(ids))
    ]
    paired = [place < length for length, ids in zip(lengths, student_ids, strict=True) for place in range(len(ids))]
    device = teacher.token_ids.device
    return AlignedTargets(
        token_ids=torch.tensor([token for ids in student_ids for token in ids], dtype=torch.int64, device=device),
        teacher=teacher.rows(torch.tensor(index, dtype=torch.int64, device=device)),
        has_counterpart=torch.tensor(paired, dtype=torch.bool, device=device),
    )


def _by_rank(p: Tensor, q: Tensor) -> Tensor:
    """Return the L1 distance of sorted probabilities, whose lengths may differ."""
    size = max(p.shape[-1], q.shape[-1])
    return (pad(p, (0, size - p.shape[-1])) - pad(q, (0, size - q.shape[-1]))).abs().sum(-1)
