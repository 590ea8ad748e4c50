"""Turn raw label log-probabilities into soft labels, with or without the prior."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, logsumexp

from distillctl.errors import UpstreamError


def calibrate(log_probs: np.ndarray, log_prior: np.ndarray | list[float] | None) -> np.ndarray:
    """Return normalised label log-probabilities [N, K] from raw ones, after dividing by the prior [K]."""
    if log_prior is not None:
        if len(log_prior) != log_probs.shape[-1]:
            message = f"the stored prior has {len(log_prior)} labels, the recipe {log_probs.shape[-1]}"
            raise UpstreamError(message, where="collect", next="distillctl collect RECIPE")
        log_probs = log_probs - np.asarray(log_prior, dtype=np.float32)
    return np.asarray(log_softmax(log_probs.astype(np.float32), axis=-1))


def batch_prior(log_probs: np.ndarray) -> np.ndarray:
    """Return the log of the mean label distribution, float32 [K] (Batch Calibration, Zhou et al. 2023, eq. 5)."""
    normalised = log_softmax(log_probs.astype(np.float64), axis=-1)
    return np.asarray(logsumexp(normalised, axis=0) - np.log(len(log_probs)), dtype=np.float32)


def measured(log_probs: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """Rows whose likeliest label is known, bool [N]: its probability is exact, and no other label's can be as high.

    log_probs: [N, K]; seen: bool [N, K], False where a log-probability is an upper bound; None: all are exact, and all
    rows are measured.
    """
    if seen is None:
        return np.ones(len(log_probs), bool)
    highest = np.where(seen, log_probs, -np.inf).max(-1, keepdims=True)
    return np.asarray(((log_probs >= highest).sum(-1) == 1) & seen.any(-1))
