"""Store tokens drawn from the distribution, with importance weights.

Anshumann et al. 2025, "Sparse Logit Sampling": draws estimate −Σ P log Q and its gradient without bias. The k likeliest
tokens cannot do that, however they are renormalised. The draws are stratified (`sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import SampledTargets
from distillctl.recipe import Sampled
from distillctl.soft_labels import sampling
from distillctl.soft_labels.columns import per_kept_token, per_token, short
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.text import flat_token_ids


class SampledLabels:
    """Store N stratified draws from R ∝ P^exponent at each response token.

    ids: the distinct draws, the heaviest first. weights: count · P/R / N, not self-normalised. At exponent 1 they are
    count/N, exact in float32, and sum to 1; otherwise they keep 11 significant bits. log_probs: log P, needed for the
    KL over a trimmed vocabulary. entropy: H(P) in nats. Logs and entropy have a relative error of at most 2^−11.
    """

    def __init__(self, spec: Sampled) -> None:
        self.draws, self.exponent = spec.draws, spec.exponent
        self.fields = [
            per_kept_token("ids", pa.int32()),
            per_kept_token("weights", pa.float32()),
            per_kept_token("log_probs", pa.float32()),
            per_token("entropy"),
        ]

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Draw from normalised log-probabilities [T, V]. The draws depend on the generator's state alone."""
        log_p = log_probs.double()
        sums = sampling.mass(self.exponent * log_p)
        drawn = sampling.draw(sums, sums[:, -1:], self.draws, generator).cpu().numpy()
        places, counts = np.unique(drawn + np.arange(len(drawn))[:, None] * log_p.shape[-1], return_counts=True)
        row, ids = np.divmod(places, log_p.shape[-1])
        weights = (counts / self.draws).astype(np.float32)
        at = torch.from_numpy(row), torch.from_numpy(ids)
        if self.exponent != 1:
            ratio = (1 - self.exponent) * log_p[at] + sums[:, -1].log()[at[0]]  # log P/R
            weights = short(weights * ratio.exp().cpu().numpy())
        order = np.lexsort((ids, -weights, row))
        ends = np.bincount(row, minlength=len(drawn)).cumsum()[:-1]
        return {
            "ids": np.split(ids[order].astype(np.int32), ends),
            "weights": np.split(weights[order], ends),
            "log_probs": np.split(short(log_probs.float().cpu()[at].numpy()[order]), ends),
            "entropy": short(_entropy(log_probs.float()).cpu().numpy()),
        }

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> SampledTargets:
        """Return targets for the rows' positions in order, without the draws that ``remap`` drops.

        The remaining weights estimate the mass that stays; weights and probabilities are divided by it. A position that
        has lost all its draws has no loss.
        """
        ids = torch.from_numpy(Ragged.joined(labels["ids"]).padded(-1)).long()
        weights = torch.from_numpy(Ragged.joined(labels["weights"]).padded(0))
        log_probs = torch.from_numpy(Ragged.joined(labels["log_probs"]).padded(0))
        drawn = sampling.renamed(SampledTargets(flat_token_ids(token_ids, remap), ids, weights, log_probs), remap)
        return drawn if remap is None else sampling.divided(drawn, drawn.weights.sum(-1).log().nan_to_num(neginf=0))

    def captured_mass(self, labels: dict[str, list[Any]]) -> None:
        """Return None: the draws represent the whole distribution."""

    def entropy(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Return H(P) in nats at each response token, float32 [N]."""
        return np.concatenate(labels["entropy"])


def _entropy(log_probs: Tensor) -> Tensor:
    """Return H(P) in nats [T] of log-probabilities [T, V], with 0 log 0 = 0."""
    return -(log_probs.exp() * log_probs.where(~log_probs.isneginf(), 0)).sum(-1)
