"""The need of each response token for the context: KL(P_full ‖ P_simplified) of the same teacher, in nats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillctl.tasks.generate.facts import NeedRange, NeedSpread, NeedStretch

EDGES = (0.01, 0.1, 1.0)
"""Between tokens that need nothing of the context and those that need all of it, in nats."""
POSITIONS = (1, 2, 5, 17, 65)
"""Where stretches of a response begin, counted from 1."""


def spread(rows: Sequence[np.ndarray]) -> NeedSpread:
    """Group tokens by their KL, and by their position. rows: the tokens' KL of each response, float32."""
    kl = np.concatenate([*rows, np.zeros(0)]).astype(np.float64)
    place = np.concatenate([*(np.arange(1, len(row) + 1) for row in rows), np.zeros(0)])
    if not len(kl):
        return NeedSpread(tokens=0, bins=[], positions=[])
    group, stretch = np.digitize(kl, EDGES), np.digitize(place, POSITIONS) - 1
    return NeedSpread(
        tokens=len(kl),
        bins=[
            NeedRange(
                low=low,
                high=high,
                tokens=float((group == index).mean()),
                nats=float(kl[group == index].sum() / (kl.sum() or 1.0)),
            )
            for index, (low, high) in enumerate(zip((0.0, *EDGES), (*EDGES, None), strict=True))
        ],
        positions=[
            NeedStretch(first=first, last=last, mean=float(kl[stretch == index].mean()))
            for index, (first, last) in enumerate(_stretches(int(place.max())))
        ],
    )


def _stretches(longest: int) -> list[tuple[int, int]]:
    """Return the first and last position of each stretch up to ``longest``."""
    begin = [first for first in POSITIONS if first <= longest]
    return list(zip(begin, [*(first - 1 for first in begin[1:]), longest], strict=True))
