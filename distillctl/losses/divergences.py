"""Divergences between teacher P and student Q over a whole distribution: natural logs, float32, one value per position.

teacher, student: normalised log-probabilities [..., V] (−inf allowed in the teacher's). Each returns nats [...];
only the training loop reduces. Temperature belongs to `objective`, which hands over tempered log-probabilities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(P‖Q); 0 exactly when they agree. Hinton et al. 2015, eq. 2 (without T², which the objective applies)."""
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(Q‖P): seeks modes (Gu et al. 2024, "MiniLLM", eq. 1). Infinite where Q > 0 and P = 0."""
    return _kl(student, teacher)


def jsd(teacher: Tensor, student: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(P‖M) + (1−β) KL(Q‖M), M = βP + (1−β)Q, 0 < β < 1, not normalised.

    Agarwal et al. 2024, "GKD", eq. 1. Symmetric at β = ½ and at most log 2 there; at both ends of β it vanishes.
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    """−log Q of the teacher's top choice: hard labels (for text: Kim & Rush 2016, sequence-level)."""
    return -student.gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ P (log P − log Q), with 0 log 0 = 0 and its gradient 0."""
    finite = torch.where(p.isneginf(), torch.zeros_like(p), p)
    terms = p.exp() * (finite - q)
    return torch.where(p.isneginf(), torch.zeros_like(terms), terms).sum(-1)
