"""Generate the teacher's answers in batches of similar length, with the shared context run once.

A batch begins with one forward pass over its rows' own tokens. Each further pass adds one token to every response that
has not ended. Soft labels are extracted on the way.
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
"""Extracts soft labels from log-probabilities float32 [t, V] of t consecutive tokens of one response."""
_HELD = 2**18
"""Log-probabilities held per response before `Keep` takes them. It is fixed, because random draws depend on it."""


@dataclass(frozen=True)
class Generated:
    """One response: its tokens, including the final one unless it was ``cut`` off, and its soft labels."""

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
    """Generate every view's response, or ``sampling.n`` responses, each with a random generator of its own.

    views: token ids without the context's. stop: ids that end a response. vocabulary: number of ids that probabilities
    cover. batch_tokens: largest number of row tokens in one forward pass, with padding. seeds: one per view, by default
    its index. Without ``sampling`` each token is the likeliest.
    """
    repeats = sampling.n if sampling else 1
    size = vocabulary or model.config.get_text_config().vocab_size
    ends, held = frozenset(stop), max(1, _HELD // size)
    responses_by_view: list[list[Generated]] = [[] for _ in views]
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
            responses_by_view[response.row].append(response.finished(ends))
    return responses_by_view


def _answer(
    rows: decoding.Batch,
    logits: Tensor,
    responses: list[_Response],
    ends: frozenset[int],
    max_new_tokens: int,
    vocabulary: int | None,
    sampling: Sampling | None,
) -> None:
    """Append tokens to ``responses`` until all have ended. Those that have ended leave the batch.

    logits: [B, V], which predict the first tokens.
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
    """Draw a token from log-probabilities float32 [V] at ``sampling.temperature``.

    It comes from the smallest set of likeliest tokens whose mass reaches ``top_p`` (nucleus sampling, Holtzman et al.
    2020).
    """
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
    """One response under generation."""

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
    """Return two independent generators: for the response's tokens, and for its soft labels."""
    states = np.random.SeedSequence([seed, sample]).generate_state(2, np.uint64).tolist()
    tokens, labels = (torch.Generator().manual_seed(state % 2**63) for state in states)
    return tokens, labels


def joined(parts: Sequence[dict[str, Column]]) -> dict[str, Column]:
    """Concatenate the columns of consecutive parts of one response."""
    whole: dict[str, Column] = {}
    for name in parts[0] if parts else ():
        columns = [part[name] for part in parts]
        whole[name] = list(chain.from_iterable(columns)) if isinstance(columns[0], list) else np.concatenate(columns)
    return whole
