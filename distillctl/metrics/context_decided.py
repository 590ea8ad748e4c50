"""Agreement on the tokens that the context decides.

Most tokens of an answer follow from its form (braces, keys, the rest of a word), and any student gets those right. The
context decides a token if the same teacher gives it other probabilities without the context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillctl.run_dir.facts import Facts

DECIDED = 0.1
"""Nats of KL(P_full ‖ P_simplified) from which the context decides a token."""


class ContextDecided(Facts):
    """The tokens of the ceiling's answers that the context decides, and a model's agreement on them."""

    share: float
    agreement: float


def agreement(same_top: Sequence[np.ndarray], context_kl: Sequence[np.ndarray] | None) -> ContextDecided | None:
    """Return the share of the ceiling's answer tokens that the context decides, and a model's `agreement` on them.

    same_top: for each row, bool [R], whether the model's likeliest token is the teacher's. context_kl: for each row,
    nats [R]. None if it is not known for the same tokens (the student has another tokenizer, or a server does not
    score), or if the context decides no token.
    """
    if context_kl is None or [*map(len, same_top)] != [*map(len, context_kl)] or not len(context_kl):
        return None
    decided = np.concatenate(context_kl) > DECIDED
    right = np.concatenate(same_top).astype(bool)
    if not decided.any():
        return None
    return ContextDecided(share=float(decided.mean()), agreement=float(right[decided].mean()))
