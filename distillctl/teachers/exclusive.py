"""Make label probabilities exclusive where one label begins another.

The chain rule gives the probability that the teacher's text *begins* with a label's tokens. Where the tokens of "order"
begin those of "order status", that event contains the other one: "order" could never lose, and the labels' masses could
sum to more than 1. So the probability of the longer label is subtracted from that of the shorter one. The rest is the
probability of "order" followed by anything but the end of another label.

Law: for any set of distinct labels the masses of the result sum to at most 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import logsumexp

SMALLEST_SHARE = 2.0**-24
"""Smallest share of a label that is kept: less is rounding error of float32, and 0 has no logarithm."""


def exclusive(log_probs: np.ndarray, answers: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Subtract the probability of longer labels from the labels that begin them.

    log_probs: [N, K], natural logs of Pr(text begins with the label's tokens); answers: the tokens (or bytes) of the K
    labels, all different. Returns float32 [N, K].
    """
    exclusive_log_probs = np.array(log_probs, dtype=np.float64)
    for label, longer in enumerate(extensions(answers)):
        if longer:
            whole = log_probs[:, label].astype(np.float64)
            taken = np.exp(np.minimum(logsumexp(log_probs[:, longer].astype(np.float64), axis=-1) - whole, 0.0))
            exclusive_log_probs[:, label] = whole + np.log(np.maximum(1.0 - taken, SMALLEST_SHARE))
    return exclusive_log_probs.astype(np.float32)


def extensions(answers: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Return for each label the longer labels that it begins; if these begin each other, only the shortest."""
    plain = [tuple(answer) for answer in answers]
    longer = [
        [j for j, other in enumerate(plain) if len(other) > len(answer) and other[: len(answer)] == answer]
        for answer in plain
    ]
    return [[j for j in row if not any(j in longer[k] for k in row)] for row in longer]
