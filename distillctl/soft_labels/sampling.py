"""Tokens drawn from a distribution, one from each N-th part of its mass.

Stratified draws, tokens in the order of their ids, are as free of bias as independent ones and never have more variance
(Douc, Cappé & Moulines 2005, "Comparison of Resampling Schemes for Particle Filtering", section 3.2): a token of
probability p comes within two of pN times, and not pN ± √(p(1−p)N).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillctl.losses.targets import SampledTargets


def mass(log_weights: Tensor) -> Tensor:
    """Running sums [T, V] of exp(log_weights), in float64: in float32 the unlikely of 2^17 tokens would be lost."""
    return log_weights.double().exp().cumsum(-1)


def draw(sums: Tensor, whole: Tensor | float, count: int, generator: torch.Generator) -> Tensor:
    """Ids int64 [T, count], ascending, from `mass` [T, V]; V where the draw fell beyond it, on the part of ``whole`` (a
    float, or [T, 1]) that these tokens do not have. Depends on the generator's state alone."""
    within = torch.rand(len(sums), count, dtype=torch.float64, generator=generator, device=generator.device)
    places = (torch.arange(count, device=sums.device) + within.to(sums.device)) / count
    return torch.searchsorted(sums, places * whole, right=True)


def renamed(drawn: SampledTargets, remap: np.ndarray | None) -> SampledTargets:
    """The draws under a student's ids, without those that ``remap`` (int64 [V], −1 = dropped) drops. What the others
    weigh and how likely they are stays: whoever knows the mass of all that is kept divides by that (`divided`)."""
    if remap is None:
        return drawn
    ids = torch.from_numpy(remap)[drawn.ids].where(drawn.ids >= 0, -1)
    weights, log_probs = (values.where(ids >= 0, 0) for values in (drawn.weights, drawn.log_probs))
    return SampledTargets(drawn.token_ids, ids, weights, log_probs)


def divided(drawn: SampledTargets, log_mass: Tensor) -> SampledTargets:
    """Of a distribution of mass exp(log_mass) [N], what it is after division by that."""
    by = log_mass.unsqueeze(-1)
    log_probs = (drawn.log_probs - by).where(drawn.ids >= 0, 0)
    return SampledTargets(drawn.token_ids, drawn.ids, drawn.weights * (-by).exp(), log_probs)


def missing(log_mass: Tensor) -> Tensor:
    """1 − exp(log_mass), from 0 to 1, float32: what is not of that mass."""
    return (-torch.expm1(log_mass)).clamp(0, 1).float()
