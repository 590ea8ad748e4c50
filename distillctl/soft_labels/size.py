"""What soft labels will take on disk, before any are there: for --dry-run, without torch."""

from __future__ import annotations

from distillctl.recipe import Dense, Sampled, SoftLabels, TopK

_TEXT = 4.0
"""Bytes of a token's id and text, compressed; its share of the file's frame included."""
_PER_TOKEN, _ID = 2.3, 2.5
"""A float of 11 significant bits for each token; an id."""


def bytes_per_token(spec: SoftLabels, vocabulary: int) -> float:
    """Bytes per response token, from what `make bench-softlabels` measures; ids cost the same in any vocabulary."""
    match spec:
        case TopK():
            return _TEXT + min(spec.k, vocabulary) * (_ID + 1.4) + _PER_TOKEN * (1 + len(spec.temperatures))
        case Sampled():
            distinct = min(spec.draws, 12 + spec.draws // 50)  # of 50 draws, 12 in the paper; more draws find few more
            return _TEXT + distinct * (_ID + (0.5 if spec.exponent == 1 else 1.8)) + _PER_TOKEN
        case Dense():
            return _TEXT + 3.7 * vocabulary
        case _:
            return _TEXT
