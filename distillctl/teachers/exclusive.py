"""Make label probabilities exclusive where one label begins another.

The chain rule gives the probability that the teacher's text *begins* with a label's tokens. Where the tokens of "order"
begin those of "order status", that event contains the other one: "order" could never lose, and the labels' masses could
sum to more than 1. So the share of the longer label is taken off the shorter one: what is left is the probability of
"order" followed by anything that is not the rest of another label.

Law: for any set of distinct labels the masses of the result sum to at most 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import logsumexp

SMALLEST_SHARE = 2.0**-24
"""What is left of a label at the least, as a share of it: less is the rounding of float32, and 0 has no logarithm."""


def exclusive(log_probs: np.ndarray, answers: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Take the longer labels' shares off the labels that begin them.

    log_probs: [N, K], natural logs of Pr(text begins with the label's tokens); answers: the tokens (or bytes) of the K
    labels, all different. Returns float32 [N, K].
    """
    found = np.array(log_probs, dtype=np.float64)
    for label, longer in enumerate(extensions(answers)):
        if longer:
            whole = log_probs[:, label].astype(np.float64)
            taken = np.exp(np.minimum(logsumexp(log_probs[:, longer].astype(np.float64), axis=-1) - whole, 0.0))
            found[:, label] = whole + np.log(np.maximum(1.0 - taken, SMALLEST_SHARE))
    return found.astype(np.float32)


def extensions(answers: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """For each label, the longer ones that it begins; of several that begin each other, the shortest."""
    plain = [tuple(answer) for answer in answers]
    longer = [
        [j for j, other in enumerate(plain) if len(other) > len(one) and other[: len(one)] == one] for one in plain
    ]
    return [[j for j in row if not any(j in longer[k] for k in row)] for row in longer]
