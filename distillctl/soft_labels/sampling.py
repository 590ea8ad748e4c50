"""Draw tokens from a distribution, one from each N-th part of its mass.

Stratified draws, with tokens in the order of their ids, are unbiased like independent ones, and never have more
variance (Douc, Cappé & Moulines 2005, "Comparison of Resampling Schemes for Particle Filtering", section 3.2): the
count of a token of probability p is within two of pN, instead of pN ± √(p(1−p)N).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillctl.losses.targets import SampledTargets


def mass(log_weights: Tensor) -> Tensor:
    """Return running sums [T, V] of exp(log_weights) in float64. Float32 would lose the unlikely tokens among 2^17."""
    return log_weights.double().exp().cumsum(-1)


def draw(sums: Tensor, whole: Tensor | float, count: int, generator: torch.Generator) -> Tensor:
    """Return ids int64 [T, count], ascending, drawn from `mass` [T, V]. They depend on the generator's state alone.

    whole: the total mass, a float or [T, 1]. A draw that falls on the part of it beyond these tokens' mass returns V.
    """
    within = torch.rand(len(sums), count, dtype=torch.float64, generator=generator, device=generator.device)
    places = (torch.arange(count, device=sums.device) + within.to(sums.device)) / count
    return torch.searchsorted(sums, places * whole, right=True)


def renamed(drawn: SampledTargets, remap: np.ndarray | None) -> SampledTargets:
    """Return the draws under a student's ids, without those that ``remap`` (int64 [V], −1 = dropped) drops.

    Weights and probabilities of the others stay as they are; the caller divides them by the mass that was kept
    (`divided`).
    """
    if remap is None:
        return drawn
    ids = torch.from_numpy(remap)[drawn.ids].where(drawn.ids >= 0, -1)
    weights, log_probs = (values.where(ids >= 0, 0) for values in (drawn.weights, drawn.log_probs))
    return SampledTargets(drawn.token_ids, ids, weights, log_probs)


def divided(drawn: SampledTargets, log_mass: Tensor) -> SampledTargets:
    """Divide the draws' weights and probabilities by exp(log_mass) [N]."""
    by = log_mass.unsqueeze(-1)
    log_probs = (drawn.log_probs - by).where(drawn.ids >= 0, 0)
    return SampledTargets(drawn.token_ids, drawn.ids, drawn.weights * (-by).exp(), log_probs)


def missing(log_mass: Tensor) -> Tensor:
    """Return 1 − exp(log_mass), clipped to [0, 1], float32."""
    return (-torch.expm1(log_mass)).clamp(0, 1).float()
