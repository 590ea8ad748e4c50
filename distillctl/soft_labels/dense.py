"""Store the whole distribution as soft labels, in exact float32. For tests and small vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import DenseTargets
from distillctl.recipe import Dense
from distillctl.soft_labels import sampling
from distillctl.soft_labels.columns import per_kept_token
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.text import flat_token_ids


class DenseLabels:
    """Store the `log_probs` of all V tokens at each response token, by id."""

    def __init__(self, spec: Dense) -> None:
        self.fields = [per_kept_token("log_probs", pa.float32())]

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Keep log-probabilities [T, V] unchanged."""
        return {"log_probs": log_probs.float().cpu().numpy()}

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> DenseTargets:
        """Return targets for the rows' positions in order, renormalised without the ids that ``remap`` drops."""
        log_probs = torch.from_numpy(Ragged.joined(labels["log_probs"]).padded(-np.inf))
        if remap is not None:
            old = torch.from_numpy(np.flatnonzero(remap >= 0))
            new = torch.from_numpy(remap)[old]
            smaller = log_probs.new_full((len(log_probs), int(new.max()) + 1), -torch.inf)
            smaller[:, new] = log_probs[:, old]
            dropped = sampling.missing(smaller.double().logsumexp(-1))
            return DenseTargets(flat_token_ids(token_ids, remap), smaller.log_softmax(-1), dropped)
        return DenseTargets(flat_token_ids(token_ids, remap), log_probs)

    def captured_mass(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Return Σ p over the kept ids, which is 1, float32 [N]."""
        return np.ones(sum(map(len, labels["log_probs"])), np.float32)

    def entropy(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Return H(P) in nats at each response token, float32 [N]."""
        whole = Ragged.joined(labels["log_probs"]).padded(-np.inf)
        return np.asarray(-(np.exp(whole) * np.where(np.isneginf(whole), 0, whole)).sum(-1))
