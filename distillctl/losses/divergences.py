"""Divergences between teacher P and student Q over a set of outcomes: natural logs, one value per position.

teacher, student: normalised log-probabilities [..., V], float32 (−inf allowed in either). Each function returns nats
[...] (tvd: a share); only the training loop reduces. The outcomes are a vocabulary, labels, or the tokens kept of a
distribution and one outcome for all others. `token_loss` applies the temperature and passes tempered log-probabilities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(P‖Q); 0 exactly when they agree. Hinton et al. 2015, eq. 2 (without T², which `token_loss` applies)."""
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(Q‖P), which seeks modes (Gu et al. 2024, "MiniLLM", eq. 1). Infinite where Q > 0 and P = 0."""
    return _kl(student, teacher)


def jsd(teacher: Tensor, student: Tensor, beta: float = 0.5) -> Tensor:
    """Return β KL(P‖M) + (1−β) KL(Q‖M), M = βP + (1−β)Q, 0 < β < 1, not normalised.

    Agarwal et al. 2024, "GKD", eq. 1. At β = ½ it is symmetric and at most log 2; at both ends of β it vanishes.
    """
    mixture = _mixture(teacher, student, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def skew_kl(teacher: Tensor, student: Tensor, alpha: float = 0.1) -> Tensor:
    """Return KL(P ‖ αP + (1−α)Q), 0 < α < 1: it tends to KL(P‖Q) as α → 0, and is never above −log α.

    Ko et al. 2024, "DistiLLM", section 3.1.
    """
    return _kl(teacher, _mixture(teacher, student, alpha))


def tvd(teacher: Tensor, student: Tensor) -> Tensor:
    """Return ½ Σ|P − Q|, from 0 to 1: the share of the mass that differs. Wen et al. 2023, "f-DISTILL", section 3.1."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)


def cross_entropy(token_ids: Tensor, student: Tensor) -> Tensor:
    """Return −log Q of the teacher's response token (sequence-level, Kim & Rush 2016), or of its top label.

    token_ids: int64 [...]; −1 for no token, with no loss.
    """
    absent = token_ids < 0
    log_q = student.gather(-1, token_ids.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(absent, torch.zeros_like(log_q), -log_q)


def _mixture(teacher: Tensor, student: Tensor, share: float) -> Tensor:
    """Return log(share P + (1 − share) Q); −inf with gradient 0 if both are 0 (logaddexp's would be NaN)."""
    neither = teacher.isneginf() & student.isneginf()
    p, q = (side.masked_fill(neither, 0) for side in (teacher, student))
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share)).masked_fill(neither, -torch.inf)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Return Σ P (log P − log Q), with 0 log 0 = 0 and gradient 0 there."""
    nothing = p.isneginf()
    return (p.exp() * (p.masked_fill(nothing, 0) - q.masked_fill(nothing, 0))).sum(-1)
