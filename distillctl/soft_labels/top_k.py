"""Soft labels: the k likeliest tokens with their probabilities, and the mass of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import TopKTargets
from distillctl.recipe import TopK
from distillctl.soft_labels.columns import per_kept_token, per_token, short
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.text import flat_token_ids


class TopKLabels:
    """Per response token: `ids`, the likeliest first, and their `log_probs` at T = 1; `log_tail`, the log of all other
    tokens' mass; for every further temperature T `log_tail_at_T`, log Σ exp(log p/T) over all other tokens. With the
    head that is log Σ_v exp(log p_v/T), which a lumped tail could not be brought to later.

    Stored logs δ-close to the true ones, |δ| ≤ 2^−11 |log p|, are normalised over head and tail when read. That costs
    KL(P‖P̃) = log E[exp(δ − E[δ])] ≲ ½ E[δ²] ≤ 2^−23 E[log² p] nats, about 1e-6 at most for k = 32.
    """

    def __init__(self, spec: TopK) -> None:
        self.k = spec.k
        others = sorted(set(spec.temperatures) - {1.0})
        self.tails = {1.0: "log_tail"} | {T: f"log_tail_at_{T:g}".replace(".", "_") for T in others}
        self.fields = [
            per_kept_token("ids", pa.int32()),
            per_kept_token("log_probs", pa.float32()),
            *map(per_token, self.tails.values()),
        ]

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Of normalised log-probabilities [T, V]; tokens that cannot come (−inf) are no rank."""
        values, ids = log_probs.float().topk(min(self.k, log_probs.shape[-1]))
        others = log_probs.float().scatter(-1, ids, -torch.inf)
        ends = (~values.isneginf()).sum(-1).cumsum(0)[:-1].cpu().numpy()
        there = ~values.isneginf()
        return {
            "ids": np.split(ids[there].cpu().numpy().astype(np.int32), ends),
            "log_probs": np.split(short(values[there].cpu().numpy()), ends),
        } | {name: short((others / T).logsumexp(-1).cpu().numpy()) for T, name in self.tails.items()}

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> TopKTargets:
        """The rows' positions in order. Ids that ``remap`` drops join the tail; the sums at each T stay as they are."""
        ids = torch.from_numpy(Ragged.joined(labels["ids"]).padded(-1)).long()
        head = torch.from_numpy(Ragged.joined(labels["log_probs"]).padded(-np.inf))
        tails = {T: torch.from_numpy(np.concatenate(labels[name])) for T, name in self.tails.items()}
        excess = _total(head, tails[1.0])
        head, tails = head - excess[:, None], {T: tail - excess / T for T, tail in tails.items()}
        sums = {T: _total(head / T, tail) for T, tail in tails.items() if T != 1}
        tail = tails[1.0]
        if remap is not None:
            ids = torch.from_numpy(remap)[ids].where(ids >= 0, -1)
            tail = torch.logaddexp(tail, head.where(ids < 0, -torch.inf).logsumexp(-1))
            head = head.where(ids >= 0, -torch.inf)
        return TopKTargets(flat_token_ids(token_ids, remap), ids, head, tail, sums)

    def captured_mass(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Σ p over the kept ids at each response token, float32 [N]."""
        return np.asarray(-np.expm1(np.concatenate(labels["log_tail"])))

    def entropy(self, labels: dict[str, list[Any]]) -> None:
        """H(P) is not known from a head and a lumped tail."""


def _total(head: Tensor, tail: Tensor) -> Tensor:
    """log of the mass of head [N, k] and tail [N] together."""
    return torch.cat([head, tail[:, None]], -1).logsumexp(-1)
