"""The teacher answers: token by token, in batches of like lengths, with the shared context run once.

A batch begins with one forward pass over its rows' own tokens; then each pass is one token of every response that has
not ended. What is kept of the distributions is taken from them on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillctl.data import batching
from distillctl.recipe import Sampling
from distillctl.teachers import decoding, finite
from distillctl.teachers.selected_logits import AT_ONCE
from distillctl.teachers.shared_context import SharedContext

Column = np.ndarray | list[np.ndarray]
"""One value, or one array of its own length, per response token."""
Keep = Callable[[Tensor, torch.Generator], dict[str, Column]]
"""What is kept of log-probabilities float32 [t, V] of t tokens of one response, one after the other."""
_HELD = 2**18
"""Log-probabilities held per response before `Keep` takes them. Not a matter of the batch: draws depend on it."""


@dataclass(frozen=True)
class Generated:
    """One response: its tokens, the one that ended it included unless it was ``cut`` off, and what `Keep` kept."""

    token_ids: list[int]
    cut: bool
    labels: dict[str, Column]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    views: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new_tokens: int,
    batch_tokens: int,
    vocabulary: int | None = None,
    context: SharedContext | None = None,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    keep: Keep | None = None,
) -> list[list[Generated]]:
    """Every view's response, or ``sampling.n`` of them, each drawn by a generator of its own.

    views: token ids, without ``context``'s tokens; stop: the ids at which a response ends; vocabulary: probabilities
    are over the first so many ids; batch_tokens: row tokens of one forward pass at most, padding included; seeds: one
    per view (default: its place), for what is drawn. Without ``sampling`` each token is the likeliest.
    """
    repeats = sampling.n if sampling else 1
    size = vocabulary or model.config.get_text_config().vocab_size
    ends, held = frozenset(stop), max(1, _HELD // size)
    found: list[list[Generated]] = [[] for _ in views]
    most = max(1, min(batch_tokens, AT_ONCE // size) // repeats)
    plan = batching.by_length(list(map(len, views)), max_rows=most, max_tokens=batch_tokens)
    for batch in plan:
        responses = [
            _Response(row, sample, row if seeds is None else seeds[row], keep, held)
            for row in batch
            for sample in range(repeats)
        ]
        with decoding.batch(model, [views[row] for row in batch], context) as (rows, logits):
            if repeats > 1:
                index = torch.arange(len(batch), device=logits.device).repeat_interleave(repeats)
                rows.select(index)
                logits = logits[index]
            _answer(rows, logits, responses, ends, max_new_tokens, vocabulary, sampling)
        for response in responses:
            found[response.row].append(response.finished(ends))
    return found


def _answer(
    rows: decoding.Batch,
    logits: Tensor,
    responses: list[_Response],
    ends: frozenset[int],
    max_new_tokens: int,
    vocabulary: int | None,
    sampling: Sampling | None,
) -> None:
    """Append to ``responses`` until all have ended; those that have leave the batch.

    logits: [B, V], what predicts their first tokens.
    """
    open_ = responses
    for step in range(1, max_new_tokens + 1):
        logits = logits[:, :vocabulary].float()
        log_probs = finite.log_softmax(logits)
        tokens = (
            logits.argmax(-1).tolist()
            if sampling is None
            else [draw(row, sampling, response.generator) for row, response in zip(log_probs, open_, strict=True)]
        )
        for token, row, response in zip(tokens, log_probs, open_, strict=True):
            response.append(token, row)
        going = [place for place, token in enumerate(tokens) if token not in ends]
        if not going or step == max_new_tokens:
            return
        if len(going) < len(open_):
            rows.select(torch.tensor(going, device=logits.device))
            open_ = [open_[place] for place in going]
        following = torch.tensor([[tokens[place]] for place in going], device=logits.device)
        logits = rows.step(following)


def draw(log_probs: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token of log-probabilities float32 [V] at ``sampling.temperature``, from the smallest set of the likeliest
    tokens whose mass reaches ``top_p`` (nucleus sampling, Holtzman et al. 2020)."""
    probs = (log_probs.double() / sampling.temperature).softmax(-1)
    ids = None
    if sampling.top_p < 1:
        probs, ids = probs.sort(descending=True, stable=True)
        probs = probs[: int((probs.cumsum(-1) - probs < sampling.top_p).sum())]
    mass = probs.cumsum(-1)
    place = int(
        torch.searchsorted(mass, torch.rand((), dtype=torch.float64, generator=generator) * mass[-1], right=True)
    )
    place = min(place, len(probs) - 1)
    return place if ids is None else int(ids[place])


@dataclass
class _Response:
    """One response as it grows."""

    row: int
    sample: int
    seed: int
    keep: Keep | None
    held: int
    generator: torch.Generator = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    _waiting: list[Tensor] = field(default_factory=list)
    _kept: list[dict[str, Column]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator, self._keeping = generators(self.seed, self.sample)

    def append(self, token: int, log_probs: Tensor) -> None:
        self.token_ids.append(token)
        if self.keep is not None:
            self._waiting.append(log_probs)
            if len(self._waiting) == self.held:
                self._take()

    def finished(self, ends: frozenset[int]) -> Generated:
        if self._waiting:
            self._take()
        return Generated(self.token_ids, self.token_ids[-1] not in ends, joined(self._kept))

    def _take(self) -> None:
        assert self.keep is not None
        self._kept.append(self.keep(torch.stack(self._waiting), self._keeping))
        self._waiting.clear()


def generators(seed: int, sample: int) -> tuple[torch.Generator, torch.Generator]:
    """For what a response says, and for what is kept of it: neither changes the other."""
    states = np.random.SeedSequence([seed, sample]).generate_state(2, np.uint64).tolist()
    said, kept = (torch.Generator().manual_seed(state % 2**63) for state in states)
    return said, kept


def joined(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """The columns of consecutive parts of one response as one."""
    whole: dict[str, Column] = {}
    for name in parts[0] if parts else ():
        columns = [part[name] for part in parts]
        whole[name] = list(chain.from_iterable(columns)) if isinstance(columns[0], list) else np.concatenate(columns)
    return whole
