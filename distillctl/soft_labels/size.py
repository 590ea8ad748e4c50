"""Estimate the size of soft labels on disk for --dry-run. No torch."""

from __future__ import annotations

import math

from distillctl.recipe import Dense, Sampled, SoftLabels, TopK

_TEXT = 3.3
"""Bytes of a response token's id and text, with its share of the file's overhead."""
_VALUE = 1.8
"""A float of 11 significant bits for each response token."""
_KEPT = 2.4
"""An id and how likely it is: 2.4 for the 32 likeliest tokens of recipes/tickets.yaml (`make bench-softlabels`), 1.9
for drawn ones there, of which fewer are rare. Ids cost the same in any vocabulary."""
_DRAWN = 3.5
"""A drawn id with its weight and its probability, without which there is no KL over a trimmed vocabulary: of made-up
rows where no id comes twice (tests/soft_labels/test_response_shards.py)."""
_IN_TAIL = 0.05
"""Mean mass beyond the 32 likeliest, there."""
_DENSE = 3.7
"""A whole float."""


def bytes_per_token(spec: SoftLabels, vocabulary: int | None) -> float | None:
    """Return the bytes per response token, or None if they depend on an unknown vocabulary.

    How many of N draws are distinct depends on the text, too: √(2.9 N) is taken, 12 of 50 as in the paper (Anshumann et
    al. 2025); 5 were measured on a fixed format, 24 on free text.
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
