"""What a loss compares a student with: the stored part of the teacher's distribution, for N response positions.

Logs are natural and in float32. Position n is the one that predicts ``token_ids[n]``, the response token the teacher
wrote there; its distribution P is over the student's vocabulary (ids already remapped where that was trimmed), but for
`AlignedTargets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """The response tokens only, token_ids int64 [N]; −1 where the student has no such token (it then costs nothing)."""

    token_ids: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, index: slice | Tensor) -> Self:
        """The positions that ``index`` (a slice, or int64 [M]) picks; the same type."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        """The same on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        def changed(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, Targets):
                return value._each(change)
            return {key: change(each) for key, each in value.items()} if isinstance(value, dict) else change(value)

        return type(self)(**{field.name: changed(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class DenseTargets(Targets):
    """The whole distribution: log_probs float32 [N, V], normalised, −inf allowed.

    dropped: float32 [N], the teacher's mass outside the student's vocabulary; None where none was trimmed.
    """

    log_probs: Tensor
    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class MeasuredTargets(Targets):
    """An eval row's distribution, to measure KL(P‖Q) with: the named tokens exactly, the rare others by draws.

    log_probs float32 [N, V], −inf for tokens that are not named; log_tail float32 [N], the log of the mass of those
    (−inf: none), and drawn: some of them. dropped: as of `DenseTargets`.
    """

    log_probs: Tensor
    log_tail: Tensor
    drawn: SampledTargets
    dropped: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TopKTargets(Targets):
    """The k likeliest tokens with their exact probabilities, the mass of all the others, and draws from these.

    ids int64 [N, k], −1 = missing rank; log_probs float32 [N, k], normalised over the whole vocabulary, −inf where
    missing; log_tail float32 [N], the log of the mass of all other tokens (−inf: none); log_sums: temperature T →
    log Σ_v exp(log p_v / T) over the whole vocabulary, float32 [N], from which the head follows exactly at that T.
    drawn: Σ_j w_j f(id_j) estimates Σ_v p_v f(v) over the others. dropped: as of `DenseTargets`, estimated.
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

    ids int64 [N, m], −1 = padding; weights float32 [N, m], 0 where padding, not self-normalised; log_probs float32
    [N, m], log p of each drawn token, 0 where padding.
    """

    ids: Tensor
    weights: Tensor
    log_probs: Tensor


@dataclass(frozen=True, eq=False)
class AlignedTargets(Targets):
    """Where the tokenizers differ: token_ids are the student's, and ``teacher`` (N rows, over its own vocabulary) is
    what stands at the same place in the teacher's tokens; has_counterpart bool [N] is False past their end.
    """

    teacher: DenseTargets | TopKTargets
    has_counterpart: Tensor
