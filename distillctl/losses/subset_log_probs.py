"""Compute the student's log-probabilities of a few named tokens, and of all others together, from rows of logits.

The others are summed themselves: in float32, 1 − Σ q would lose them where the named tokens have nearly all the mass,
and with them the most important gradient, that of an overconfident student.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LOG_ZERO = -1e30
"""Log-probability of an outcome that neither side has. It is finite, so that sums are never NaN."""


class SubsetLogProbs(NamedTuple):
    """The result of `subset_log_probs`; LOG_ZERO for an id of −1, and if no token is left.

    log_probs [N, m]: log Q of each named token. once [N, m]: the same, but a token named twice counts only the first
    time. log_rest [N]: log Q of all tokens that are not named.
    """

    log_probs: Tensor
    once: Tensor
    log_rest: Tensor


def subset_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> SubsetLogProbs:
    """Split logits [N, V] by ids int64 [N, m] (−1: none). Return float32, or float64 for float64 logits."""
    logits = precise(logits)
    named, rest = _SplitLogits.apply(logits if temperature == 1 else logits / temperature, ids)  # type: ignore[no-untyped-call]
    earlier = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).tril(-1).any(-1)
    once = named.masked_fill(earlier, LOG_ZERO)
    log_sum = torch.cat([once, rest.unsqueeze(-1)], -1).logsumexp(-1, keepdim=True)
    valid = ids >= 0
    return SubsetLogProbs(
        torch.where(valid, named - log_sum, LOG_ZERO),
        torch.where(valid & ~earlier, once - log_sum, LOG_ZERO),
        rest - log_sum.squeeze(-1),
    )


def precise(logits: Tensor) -> Tensor:
    """Convert to float32 unless it is float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


class _SplitLogits(torch.autograd.Function):
    """Return the logits of the named tokens [N, m] and the log-sum of the others [N].

    The only [N, V] buffer finally holds the gradient, so PyTorch refuses a second backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        index = ids.clamp_min(0)
        named = logits.gather(-1, index).masked_fill(ids < 0, LOG_ZERO)
        others = logits.scatter(-1, index, -torch.inf)
        # Token 0 stood in for the −1s.
        others[:, 0] = torch.where((ids == 0).any(-1), others[:, 0], logits[:, 0])
        top = others.amax(-1, keepdim=True)
        top.masked_fill_(top.isneginf(), 0)
        mass = others.sub_(top).exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(others, mass, ids)
        rest = torch.where(mass > 0, mass.log() + top, LOG_ZERO)
        return named, rest.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        others, mass, ids = ctx.saved_tensors
        of_named, of_rest = gradients
        others.mul_(torch.where(mass > 0, of_rest.unsqueeze(-1) / mass, 0))
        return others.scatter_add_(-1, ids.clamp_min(0), of_named.masked_fill(ids < 0, 0)), None
