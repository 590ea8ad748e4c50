"""The training objective: a weighted sum of loss terms, each at its own temperature."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distillctl.recipe import JSD, CrossEntropy, LossTerm, implementation


def objective(terms: Sequence[LossTerm], teacher: Tensor, student_logits: Tensor) -> Tensor:
    """Loss per position, float32 [...].

    teacher: normalised log-probabilities [..., V] at T = 1. student_logits: [..., V], any float dtype.
    The temperature applies to both sides and the KL family is multiplied by T², which keeps gradients of one size
    (Hinton et al. 2015, section 2).
    """
    total = 0
    for term in terms:
        temperature = term.temperature
        p = (teacher.float() / temperature).log_softmax(-1)
        q = (student_logits.float() / temperature).log_softmax(-1)
        options = {"beta": term.beta} if isinstance(term, JSD) else {}
        scale = 1.0 if isinstance(term, CrossEntropy) else temperature**2
        total = total + term.weight * scale * implementation(term)(p, q, **options)
    return total  # type: ignore[return-value]
