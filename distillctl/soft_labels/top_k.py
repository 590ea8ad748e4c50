"""Store the k likeliest tokens with their probabilities, the total of all others (the tail), and draws from the tail.

A tail with a twentieth of the mass can hold half of the entropy, because an answer may begin with thousands of words. A
student that only learns the tail's total learns nothing about it. Draws represent it without bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import SampledTargets, TopKTargets
from distillctl.recipe import TopK
from distillctl.soft_labels import sampling
from distillctl.soft_labels.columns import per_kept_token, per_token, short
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.text import flat_token_ids


class TopKLabels:
    """Store at each response token the k likeliest tokens, the mass of the tail, and draws from the tail.

    ids: the likeliest first. log_probs: theirs, at T = 1. log_tail: the log of all other tokens' mass. log_tail_at_T,
    for every further temperature T: log Σ exp(log p/T) over all other tokens; together with the head it gives log Σ_v
    exp(log p_v/T), which cannot be computed later from a lumped tail. tail_ids: of N draws from the whole distribution
    those that fell on the tail, one entry per draw, each for a mass of 1/N. tail_log_probs: their log p.

    Stored logs δ-close to the true ones, |δ| ≤ 2^−11 |log p|, are normalised over head and tail when read. That costs
    KL(P‖P̃) = log E[exp(δ − E[δ])] ≲ ½ E[δ²] ≤ 2^−23 E[log² p] nats, about 1e-6 at most for k = 32.
    """

    def __init__(self, spec: TopK) -> None:
        self.k, self.draws = spec.k, spec.tail_draws
        others = sorted(set(spec.temperatures) - {1.0})
        self.tails = {1.0: "log_tail"} | {T: f"log_tail_at_{T:g}".replace(".", "_") for T in others}
        self.fields = [
            per_kept_token("ids", pa.int32()),
            per_kept_token("log_probs", pa.float32()),
            *map(per_token, self.tails.values()),
        ]
        if self.draws:
            self.fields += [per_kept_token("tail_ids", pa.int32()), per_kept_token("tail_log_probs", pa.float32())]

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Extract the columns from normalised log-probabilities [T, V]. Impossible tokens (−inf) have no rank."""
        values, ids = log_probs.float().topk(min(self.k, log_probs.shape[-1]))
        others = log_probs.float().scatter(-1, ids, -torch.inf)
        possible = ~values.isneginf()
        ends = possible.sum(-1).cumsum(0)[:-1].cpu().numpy()
        kept = {
            "ids": np.split(ids[possible].cpu().numpy().astype(np.int32), ends),
            "log_probs": np.split(short(values[possible].cpu().numpy()), ends),
        } | {name: short((others / T).logsumexp(-1).cpu().numpy()) for T, name in self.tails.items()}
        return kept | self._drawn(others, generator) if self.draws else kept

    def of_shown(self, positions: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
        """Build the columns from the tokens that a server shows at each position, as (id, log-probability), likeliest
        first.

        All other tokens are the tail. Draws from it and its mass at other temperatures are unknown.
        """
        kept = [shown[: self.k] for shown in positions]
        left = [1.0 - math.fsum(math.exp(value) for _, value in shown) for shown in kept]
        tails = [math.log(mass) if mass > 0 else -math.inf for mass in left]
        return {
            "ids": [np.array([token for token, _ in shown], np.int32) for shown in kept],
            "log_probs": [short(np.array([value for _, value in shown], np.float32)) for shown in kept],
            "log_tail": short(np.array(tails, np.float32)),
        }

    def _drawn(self, others: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """Draw from log-probabilities [T, V] of the tail alone."""
        drawn = sampling.draw(sampling.mass(others), 1.0, self.draws, generator)
        in_tail = drawn < others.shape[-1]
        ends = in_tail.sum(-1).cumsum(0)[:-1].cpu().numpy()
        log_probs = others.gather(-1, drawn.clamp_max(others.shape[-1] - 1))[in_tail]
        return {
            "tail_ids": np.split(drawn[in_tail].cpu().numpy().astype(np.int32), ends),
            "tail_log_probs": np.split(short(log_probs.cpu().numpy()), ends),
        }

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> TopKTargets:
        """Return targets for the rows' positions in order, without the ids and draws that ``remap`` drops,
        renormalised.

        The share of draws that stay estimates how much of the tail stays. One more is counted as kept, so that it is
        never zero. Without draws the whole tail stays.
        """
        ids = torch.from_numpy(Ragged.joined(labels["ids"]).padded(-1)).long()
        head = torch.from_numpy(Ragged.joined(labels["log_probs"]).padded(-np.inf))
        tails = {T: torch.from_numpy(np.concatenate(labels[name])) for T, name in self.tails.items()}
        whole = stays = _total(head, tails[1.0])
        flat_ids, drawn, dropped = flat_token_ids(token_ids, remap), None, None
        if self.draws:
            drawn = self._draws(labels, flat_ids, whole)
        if remap is not None:
            ids = torch.from_numpy(remap)[ids].where(ids >= 0, -1)
            head = head.where(ids >= 0, -torch.inf)
            if drawn is not None:
                before = (drawn.ids >= 0).sum(-1)
                drawn = sampling.renamed(drawn, remap)
                log_share = (((drawn.ids >= 0).sum(-1) + 1) / (before + 1)).log()
                tails = {T: tail + log_share for T, tail in tails.items()}
            no_others = (ids >= 0).sum(-1) == int((remap >= 0).sum())
            tails = {T: tail.masked_fill(no_others, -torch.inf) for T, tail in tails.items()}
            stays = _total(head, tails[1.0])
            dropped = sampling.missing(stays - whole)
            stays = stays.where(~stays.isneginf(), whole)
            if drawn is not None:
                drawn = sampling.divided(drawn, stays - whole)
        head, tails = head - stays[:, None], {T: tail - stays / T for T, tail in tails.items()}
        sums = {T: _total(head / T, tail) for T, tail in tails.items() if T != 1}
        return TopKTargets(flat_ids, ids, head, tails[1.0], sums, drawn, dropped)

    def _draws(self, labels: dict[str, list[Any]], token_ids: Tensor, whole: Tensor) -> SampledTargets:
        """Return the stored draws. whole: log of the stored total mass [N], which is 0 but for rounding."""
        ids = torch.from_numpy(Ragged.joined(labels["tail_ids"]).padded(-1)).long()
        log_probs = torch.from_numpy(Ragged.joined(labels["tail_log_probs"]).padded(0)) - whole[:, None]
        return SampledTargets(token_ids, ids, (ids >= 0).float() / self.draws, log_probs.where(ids >= 0, 0))

    def captured_mass(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Return Σ p over the kept ids at each response token, float32 [N]."""
        return np.asarray(-np.expm1(np.concatenate(labels["log_tail"])))

    def entropy(self, labels: dict[str, list[Any]]) -> None:
        """Return None: H(P) cannot be computed from a head and the total of a tail."""


def _total(head: Tensor, tail: Tensor) -> Tensor:
    """Return the log of the total mass of head [N, k] and tail [N]."""
    return torch.cat([head, tail[:, None]], -1).logsumexp(-1)
