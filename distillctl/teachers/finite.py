"""Reject a teacher whose probabilities are not numbers, before any of them is stored."""

from __future__ import annotations

from torch import Tensor

from distillctl.errors import UnavailableError


def log_softmax(logits: Tensor) -> Tensor:
    """Return natural log-probabilities of logits [..., V], float32, on the CPU. −inf is allowed.

    Raise UnavailableError if logits are NaN or +inf, or all −inf.
    """
    log_probs = logits.float().log_softmax(-1).cpu()
    if log_probs[..., 0].isnan().any():  # any of these makes a distribution NaN as a whole
        raise UnavailableError(
            "the teacher gives NaN instead of probabilities: its weights are not finite numbers, or they overflow in "
            "this number format",
            where="teacher.model",
            next="use another copy of the model, or set teacher.dtype: float32",
        )
    return log_probs
