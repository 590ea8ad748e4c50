"""Controls for texts: the train rows' most frequent answer, and that of the most similar one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from distillctl.data.text_features import Features

_FEATURES = 200_000
"""The most features of each kind."""
_AT_ONCE = 64
"""Held-out rows whose similarities to all train rows are in memory at a time."""


def most_frequent(answers: Sequence[str]) -> str:
    """Return the most frequent answer; the first of equally frequent ones."""
    return Counter(answers).most_common(1)[0][0]


def nearest_row(train: Sequence[str], held_out: Sequence[str]) -> list[int]:
    """Return the train text that is most similar to each held-out one, by its place; the first where several are.

    The similarity is the cosine of their TF-IDF.
    """
    features = Features(_FEATURES)
    try:
        known = features.fit(train).T.tocsc()
    except ValueError:  # no text has a word or two characters
        return [0] * len(held_out)
    queries = features(held_out)
    places: list[int] = []
    for start in range(0, len(held_out), _AT_ONCE):
        places += np.asarray((queries[start : start + _AT_ONCE] @ known).toarray().argmax(1)).tolist()
    return places


def answers(train: Sequence[str], responses: Sequence[str], held_out: Sequence[str]) -> dict[str, list[str]]:
    """Return control → its answer to each held-out text. responses: the teacher's answer to each train text."""
    return {
        "most_frequent": [most_frequent(responses)] * len(held_out),
        "nearest_row": [responses[place] for place in nearest_row(train, held_out)],
    }
