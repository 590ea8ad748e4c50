"""Score label distributions row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillctl.metrics import names


def row_scores(
    log_probs: np.ndarray, labels: Sequence[str], references: Sequence[str | None], ceiling: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return 1.0 for each row whose top label is right, float64 [N], and the metric's name.

    log_probs, ceiling: [N, K]. With a reference for every row the metric is accuracy, else agreement with the ceiling.
    """
    named = np.array(labels)
    return label_scores(named[log_probs.argmax(-1)], references, named[ceiling.argmax(-1)])


def label_scores(
    answers: Sequence[str] | np.ndarray, references: Sequence[str | None], ceiling: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, str]:
    """Return `row_scores` of an arm's and the ceiling's labels, given by name."""
    if all(reference is not None for reference in references):
        return (np.asarray(answers) == np.asarray(references)).astype(float), "accuracy"
    return (np.asarray(answers) == np.asarray(ceiling)).astype(float), names.AGREEMENT


def row_kl(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return KL(P‖Q) in nats of each row of normalised log-probabilities [N, K], float64 [N]."""
    teacher, student = teacher.astype(np.float64), student.astype(np.float64)
    divergence: np.ndarray = (np.exp(teacher) * (teacher - student)).sum(-1)
    return divergence


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Return the mean of `row_kl`."""
    return float(row_kl(teacher, student).mean())


def same_top(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of rows with the same top label."""
    return float((a.argmax(-1) == b.argmax(-1)).mean())
