"""The objective for labels, whose whole teacher distribution is always known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distillctl.losses.targets import DenseTargets
from distillctl.losses.token_loss import token_loss
from distillctl.recipe import LossTerm


def objective(terms: Sequence[LossTerm], teacher: Tensor, student_logits: Tensor) -> Tensor:
    """Return `token_loss` per row, float32 [N], with the teacher's top label as its response.

    teacher: normalised log-probabilities [N, K] at T = 1. student_logits: [N, K], any float dtype.
    """
    return token_loss(terms, DenseTargets(teacher.argmax(-1), teacher.float()), student_logits)
