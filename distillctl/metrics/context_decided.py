"""Agreement on the tokens that the context decides.

Most tokens of an answer follow from its form (braces, keys, the rest of a word), and any student gets those right. The
context decides a token where the same teacher, without the context, would have other probabilities for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DECIDED = 0.1
"""Nats of KL(P_full ‖ P_simplified) from which the context decides a token."""


def agreement(same_top: Sequence[np.ndarray], context_kl: Sequence[np.ndarray] | None) -> dict[str, float] | None:
    """How many tokens of the ceiling's answers the context decides, and how often a model agrees on them.

    same_top: of each row, bool [R], whether the model's likeliest token is the teacher's; context_kl: of each row, in
    nats [R]. Returns `share` of all tokens, and `agreement` on them. None where it is not known for the same tokens
    (the student has a tokenizer of its own, a server does not score), or the context decides none.
    """
    if context_kl is None or [*map(len, same_top)] != [*map(len, context_kl)] or not len(context_kl):
        return None
    decided = np.concatenate(context_kl) > DECIDED
    right = np.concatenate(same_top).astype(bool)
    if not decided.any():
        return None
    return {"share": float(decided.mean()), "agreement": float(right[decided].mean())}
