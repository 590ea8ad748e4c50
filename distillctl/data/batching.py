"""Plan batches of similar lengths under a token budget. A plan depends only on the lengths and the seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np


def by_length(lengths: Sequence[int] | np.ndarray, *, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Return row indices in batches, shortest first, with rows × longest ≤ max_tokens unless a single row is longer."""
    known = np.asarray(lengths).tolist()
    order = sorted(range(len(known)), key=lambda index: (known[index], index))
    return list(_cut(order, known, max_rows, max_tokens))


def shuffled(
    lengths: Sequence[int] | np.ndarray, *, max_rows: int, max_tokens: int, seed: int, epoch: int, pool: int = 50
) -> list[list[int]]:
    """Plan like `by_length`, but with new neighbours every epoch: shuffle, sort inside pools, cut, shuffle batches."""
    known = np.asarray(lengths).tolist()
    generator = random.Random(f"{seed}:{epoch}")
    order = list(range(len(known)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), pool * max_rows):
        part = sorted(order[start : start + pool * max_rows], key=lambda index: known[index])
        batches += _cut(part, known, max_rows, max_tokens)
    generator.shuffle(batches)
    return batches


def _cut(order: Iterable[int], lengths: Sequence[int], max_rows: int, max_tokens: int) -> Iterable[list[int]]:
    batch: list[int] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batch and (len(batch) == max_rows or (len(batch) + 1) * longest > max_tokens):
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch
