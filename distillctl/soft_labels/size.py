"""Estimate the size of soft labels on disk for --dry-run. No torch."""

from __future__ import annotations

import math

from distillctl.recipe import Dense, Sampled, SoftLabels, TopK

_TEXT = 3.3
"""Bytes of a response token's id and text, with its share of the file's overhead."""
_VALUE = 1.8
"""A float of 11 significant bits."""
_KEPT = 2.4
"""An id and its log-probability, measured on the 32 likeliest tokens of recipes/tickets.yaml (`make bench-softlabels`).
Drawn ones cost 1.9 there, because fewer are rare. Ids cost the same in any vocabulary."""
_DRAWN = 3.5
"""A drawn id with its weight and its probability, which the KL over a trimmed vocabulary needs. Measured on made-up
rows without repeated ids (tests/soft_labels/test_response_shards.py)."""
_IN_TAIL = 0.05
"""Mean mass beyond the 32 likeliest tokens in recipes/tickets.yaml."""
_DENSE = 3.7
"""A float of 24 significant bits."""


def bytes_per_token(spec: SoftLabels, vocabulary: int | None) -> float | None:
    """Return the bytes per response token, or None if they depend on an unknown vocabulary.

    The number of distinct tokens among N draws depends on the text. √(2.9 N) is assumed: 12 of 50, as in Anshumann et
    al. 2025. On a fixed format 5 were measured, on free text 24.
    """
    match spec:
        case TopK():
            kept = spec.k if vocabulary is None else min(spec.k, vocabulary)
            others = _DRAWN * _IN_TAIL * spec.tail_draws + _VALUE if spec.tail_draws else 0
            return _TEXT + _KEPT * kept + _VALUE * len({1.0, *spec.temperatures}) + others
        case Sampled():
            return _TEXT + _DRAWN * min(spec.draws, math.sqrt(2.9 * spec.draws)) + _VALUE
        case Dense():
            return None if vocabulary is None else _TEXT + _DENSE * vocabulary
        case _:
            return _TEXT
