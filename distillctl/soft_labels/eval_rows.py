"""Store enough of the distribution on eval rows that KL from the teacher can be measured for any student.

The student's vocabulary is unknown when the teacher answers. The k likeliest tokens and the total of the rest suffice
for a loss, but do not tell how much of the rest a trimmed vocabulary keeps. The last thousandth of a language model's
mass lies on tens of thousands of tokens. A few hundred draws estimate their part of the KL without bias, to less than
1e-4 nats for a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import MeasuredTargets, SampledTargets
from distillctl.recipe import EvalSoftLabels
from distillctl.soft_labels import sampling
from distillctl.soft_labels.columns import per_kept_token, per_token, short
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.text import flat_token_ids

BITS = 18
"""Significant bits of a log-probability."""
_ENTRIES = 2**29
"""Most named tokens in all eval rows together: 2 GiB of log-probabilities if every row has its largest length."""


def rows_measured(spec: EvalSoftLabels, vocabulary: int, max_new_tokens: int, rows: int) -> int:
    """Return how many of the first eval rows are stored in full, so that their size is bounded."""
    return min(rows, max(1, _ENTRIES // (min(vocabulary, spec.most) * max_new_tokens)))


class EvalLabels:
    """Store the likeliest tokens and draws from the rest, at each response token of a measured row.

    ids: the likeliest tokens, ascending. log_probs: theirs. log_tail: the log of all other tokens' mass. tail_ids,
    tail_log_probs: stratified draws from the others, each of which stands for the same share of their mass. Logs keep
    `BITS` significant bits. In a row that is not measured, the lists are empty and log_tail is NaN.
    """

    def __init__(self, spec: EvalSoftLabels) -> None:
        self.spec = spec
        self.fields = [
            per_kept_token("ids", pa.int32()),
            per_kept_token("log_probs", pa.float32()),
            per_token("log_tail"),
            per_kept_token("tail_ids", pa.int32()),
            per_kept_token("tail_log_probs", pa.float32()),
        ]

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Extract the columns from normalised log-probabilities [T, V]. Impossible tokens (−inf) are not named."""
        log_p, spec = log_probs.float(), self.spec
        ordered, order = log_p.sort(-1, descending=True)
        most = min(spec.most, log_p.shape[-1])
        wanted = (ordered.double().exp().cumsum(-1) < 1 - spec.rest).sum(-1) + 1
        wanted = wanted.clamp(min(spec.least, most), most)
        named = torch.zeros_like(log_p, dtype=torch.bool)
        named.scatter_(-1, order, torch.arange(log_p.shape[-1]).expand_as(order) < wanted[:, None])
        named &= ~log_p.isneginf()
        others = log_p.masked_fill(named, -torch.inf)
        sums = sampling.mass(others)
        drawn = sampling.draw(sums, sums[:, -1:], spec.draws, generator)
        inside = (drawn < log_p.shape[-1]) & (sums[:, -1:] > 0)
        drawn_log_probs = others.gather(-1, drawn.clamp_max(log_p.shape[-1] - 1))
        return {
            "ids": _split(named.nonzero()[:, 1].numpy().astype(np.int32), named),
            "log_probs": _split(short(log_p[named].numpy(), BITS), named),
            "log_tail": short(sums[:, -1].log().float().numpy(), BITS),
            "tail_ids": _split(drawn[inside].numpy().astype(np.int32), inside),
            "tail_log_probs": _split(short(drawn_log_probs[inside].numpy(), BITS), inside),
        }

    def nothing(self, tokens: int) -> dict[str, Any]:
        """Return the columns of a response that is not measured."""
        ids, values = ([np.empty(0, kind)] * tokens for kind in (np.int32, np.float32))
        tail = np.full(tokens, np.nan, np.float32)
        return {"ids": ids, "log_probs": values, "log_tail": tail, "tail_ids": ids, "tail_log_probs": values}

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> MeasuredTargets:
        """Return targets for the rows' positions in order; NaN if a row is not measured.

        Tokens that ``remap`` drops are removed, and the rest is renormalised. The draws estimate how much of the tail
        stays.
        """
        flat_ids, named = flat_token_ids(token_ids, remap), Ragged.joined(labels["ids"])
        places = torch.from_numpy(np.repeat(np.arange(len(named)), named.lengths))
        values = torch.from_numpy(Ragged.joined(labels["log_probs"]).values).double()
        tail = torch.from_numpy(np.concatenate(labels["log_tail"])).double()
        whole = torch.logaddexp(_log_mass(places, values, len(named)), tail)
        new = np.arange(int(named.values.max(initial=0)) + 1) if remap is None else remap
        ids = torch.from_numpy(new[named.values.astype(np.int64)])
        stay = ids >= 0
        places, ids, values = places[stay], ids[stay], values[stay]
        drawn = sampling.renamed(self._draws(labels, flat_ids, tail), remap)
        if remap is not None:
            tail = drawn.weights.sum(-1).log().where(~tail.isnan(), tail)
        kept = torch.logaddexp(_log_mass(places, values, len(named)), tail)
        log_probs = torch.full((len(named), int(new.max()) + 1), -torch.inf)
        log_probs[places, ids] = (values - kept[places]).float()
        dropped = None if remap is None else sampling.missing(kept - whole)
        return MeasuredTargets(flat_ids, log_probs, tail - kept, sampling.divided(drawn, kept), dropped)

    def _draws(self, labels: dict[str, list[Any]], token_ids: Tensor, tail: Tensor) -> SampledTargets:
        """Return the stored draws. token_ids: int64 [N]. tail: log of the mass [N] from which they were drawn."""
        ids = torch.from_numpy(Ragged.joined(labels["tail_ids"]).padded(-1)).long()
        drawn = ids >= 0
        weights = (tail.exp() / drawn.sum(-1).clamp_min(1)).unsqueeze(-1) * drawn
        log_probs = torch.from_numpy(Ragged.joined(labels["tail_log_probs"]).padded(0))
        return SampledTargets(token_ids, ids, weights, log_probs.double())

    def captured_mass(self, labels: dict[str, list[Any]]) -> np.ndarray:
        """Return Σ p over the kept ids at each response token, float32 [N]; NaN in rows that are not measured."""
        return np.asarray(-np.expm1(np.concatenate(labels["log_tail"])))

    def entropy(self, labels: dict[str, list[Any]]) -> None:
        """Return None: nothing asks for the entropy of eval rows."""


def _log_mass(places: Tensor, log_probs: Tensor, count: int) -> Tensor:
    """Return log Σ exp(log_probs) over the entries at each place, float64 [count]; −inf at a place without entries."""
    return torch.zeros(count, dtype=torch.float64).index_add(0, places, log_probs.exp()).log()


def _split(values: np.ndarray, of: Tensor) -> list[np.ndarray]:
    """Split ``values`` into the rows of the mask [T, n] that selected them."""
    return np.split(values, of.sum(-1).cumsum(0)[:-1].numpy())
