"""Controls for labels: the majority, and a linear model on a bag of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from distillctl.data.text_features import Features

LEAST_WEIGHT = 0.01
"""A label with less of a row's probability is left out: of many labels few matter to a row."""
_WEIGHTS = 1_000_000
"""The most weights of the linear model over all labels: its optimizer keeps some twenty copies of them."""


def majority(soft_labels: np.ndarray) -> int:
    """Return the label that is the teacher's first choice most often. soft_labels: log-probabilities [N, K]."""
    return int(np.bincount(soft_labels.argmax(-1), minlength=soft_labels.shape[1]).argmax())


def bag_of_words(train: Sequence[str], soft_labels: np.ndarray, held_out: Sequence[str]) -> np.ndarray:
    """Return the label's index for each held-out text, int [M], by multinomial logistic regression on TF-IDF.

    train: N texts; soft_labels: the teacher's log-probabilities [N, K]. A row stands there once for each of its labels,
    weighted by the label's probability: the loss is the cross-entropy to the soft labels.
    """
    weights = np.exp(soft_labels.astype(np.float64))
    rows, targets = np.nonzero(weights >= LEAST_WEIGHT)
    if len(np.unique(targets)) < 2:
        return np.full(len(held_out), majority(soft_labels))
    features = Features(max(1000, _WEIGHTS // (2 * weights.shape[1])))
    try:
        columns = features.fit(train)
    except ValueError:  # no text has a word or two characters
        return np.full(len(held_out), majority(soft_labels))
    model = LogisticRegression(C=3.0, max_iter=200)
    model.fit(sparse.csr_matrix(columns)[rows], targets, sample_weight=weights[rows, targets])
    return np.asarray(model.predict(features(held_out)))


def answers(
    train: Sequence[str], soft_labels: np.ndarray, held_out: Sequence[str], names: Sequence[str]
) -> dict[str, list[str]]:
    """Return control → the label's name for each held-out text. names: the K labels; the rest is as for
    `bag_of_words`."""
    return {
        "majority": [names[majority(soft_labels)]] * len(held_out),
        "bag_of_words": [names[label] for label in bag_of_words(train, soft_labels, held_out)],
    }
