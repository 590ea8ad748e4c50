"""A teacher whose distributions are no numbers is told as such, before anything of it is kept."""

from __future__ import annotations

from torch import Tensor

from distillctl.errors import UnavailableError


def log_softmax(logits: Tensor) -> Tensor:
    """Natural log-probabilities of logits [..., V], float32, on the CPU; −inf is allowed.

    UnavailableError where a distribution is none: NaN among its logits, an infinite one, or nothing but −inf.
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
