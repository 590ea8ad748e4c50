"""Compute distributions along given responses (teacher forcing), and how much those of two contexts differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from distillctl.data import batching
from distillctl.losses.divergences import forward_kl
from distillctl.teachers import finite
from distillctl.teachers.selected_logits import AT_ONCE, logits_at
from distillctl.teachers.shared_context import SharedContext

Use = Callable[[int, Tensor], object]
"""Takes a response's index and its log-probabilities, float32 [R, V]."""


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    views: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    use: Use,
    *,
    batch_tokens: int,
    vocabulary: int | None = None,
    context: SharedContext | None = None,
) -> None:
    """Call ``use`` with the index of every response and its log-probabilities, float32 [R, V].

    Row r predicts token r of the response after the view and the response's earlier tokens.

    views: token ids, without ``context``'s tokens; responses: token ids; vocabulary: over the first so many ids.
    Padding is on the right, where causal attention ignores it. Calls come in the order of the lengths.
    """
    sequences = [[*view, *response[:-1]] for view, response in zip(views, responses, strict=True)]
    size = vocabulary or model.config.get_text_config().vocab_size
    with context.attached() if context else nullcontext():
        plan = batching.by_length(list(map(len, sequences)), max_rows=batch_tokens, max_tokens=batch_tokens)
        for batch in (part for whole in plan for part in _parts(whole, responses, size)):
            ids = pad_sequence([torch.tensor(sequences[i]) for i in batch], batch_first=True).to(model.device)
            # The token at position L of a sequence is predicted at position L − 1.
            places = [(row, len(views[i]) - 1 + r) for row, i in enumerate(batch) for r in range(len(responses[i]))]
            rows, columns = torch.tensor(places, device=model.device).T
            extra = {"position_ids": context.positions(*ids.shape)} if context else {}
            logits = logits_at(model, ids, rows, columns, **extra)[:, :vocabulary]
            for i, part in zip(batch, logits.split([len(responses[i]) for i in batch]), strict=True):
                use(i, finite.log_softmax(part))


def context_kl(
    full: Callable[[Sequence[int], Use], None],
    simplified: Callable[[Sequence[int], Use], None],
    responses: Sequence[Sequence[int]],
    vocabulary: int,
) -> list[np.ndarray]:
    """Return KL(P_full ‖ P_simplified) in nats at each token of each response, float32 [R].

    full, simplified: call `Use` with the log-probabilities of the responses at the given places, as `score` does.
    """
    divergences: list[np.ndarray] = [np.empty(0, np.float32)] * len(responses)
    for part in _parts(range(len(responses)), responses, vocabulary):
        held: dict[int, Tensor] = {}
        full(part, held.__setitem__)

        def compare(place: int, log_probs: Tensor, part: list[int] = part, held: dict[int, Tensor] = held) -> None:
            divergences[part[place]] = forward_kl(held.pop(place), log_probs).numpy()

        simplified(part, compare)
    return divergences


def _parts(rows: Sequence[int], responses: Sequence[Sequence[int]], vocabulary: int) -> Iterator[list[int]]:
    """Yield the rows in runs whose distributions fit into memory together."""
    part: list[int] = []
    held = 0
    for row in rows:
        size = len(responses[row]) * vocabulary
        if part and held + size > AT_ONCE:
            yield part
            part, held = [], 0
        part.append(row)
        held += size
    if part:
        yield part
