"""Targets: the stored part of the teacher's distribution at N response positions, with which a loss compares the
student.

Logs are natural and in float32. Position n predicts ``token_ids[n]``, the response token that the teacher wrote there.
Its distribution P is over the student's vocabulary (ids are remapped if it was trimmed), except in `AlignedTargets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """The response tokens only, token_ids int64 [N]; −1 if the student has no such token, with no loss."""

    token_ids: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, index: slice | Tensor) -> Self:
        """Return the positions that ``index`` (a slice, or int64 [M]) selects, as the same type."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        def changed(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, Targets):
                return value._each(change)
            return {key: change(part) for key, part in value.items()} if isinstance(value, dict) else change(value)

        return type(self)(**{field.name: changed(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class DenseTargets(Targets):
    """The whole distribution: log_probs float32 [N, V], normalised, −inf allowed.

    dropped: float32 [N], the teacher's mass outside the student's vocabulary; None if the vocabulary was not trimmed.
    """

    log_probs: Tensor
    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class MeasuredTargets(Targets):
    """An eval row's distribution, for measuring KL(P‖Q): exact for the named tokens, by draws for the rare others.

    log_probs: float32 [N, V], −inf for the others. log_tail: float32 [N], the log of the others' mass (−inf: none).
    drawn: some of the others. dropped: as in `DenseTargets`.
    """

    log_probs: Tensor
    log_tail: Tensor
    drawn: SampledTargets
    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TopKTargets(Targets):
    """The k likeliest tokens with their exact probabilities, the mass of all others, and draws from these.

    ids: int64 [N, k], −1 = missing rank. log_probs: float32 [N, k], normalised over the whole vocabulary, −inf for
    missing ranks. log_tail: float32 [N], the log of the mass of all other tokens (−inf: none). log_sums: temperature T
    → log Σ_v exp(log p_v / T) over the whole vocabulary, float32 [N], from which the head at T follows exactly. drawn:
    Σ_j w_j f(id_j) estimates Σ_v p_v f(v) over the others. dropped: as in `DenseTargets`, estimated.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
    log_sums: dict[float, Tensor]
    drawn: SampledTargets | None = None
    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SampledTargets(Targets):
    """Tokens drawn from (a proposal for) P, with importance weights: Σ_j w_j f(id_j) estimates Σ_v p_v f(v).

    ids: int64 [N, m], −1 = padding. weights: float32 [N, m], not self-normalised. log_probs: float32 [N, m], log p of
    each drawn token. Both are 0 at padding.
    """

    ids: Tensor
    weights: Tensor
    log_probs: Tensor


@dataclass(frozen=True, eq=False)
class AlignedTargets(Targets):
    """Targets across tokenizers: token_ids are the student's.

    teacher: N rows over the teacher's own vocabulary, its tokens at the same places. has_counterpart: bool [N], False
    past their end.
    """

    teacher: DenseTargets | TopKTargets
    has_counterpart: Tensor
