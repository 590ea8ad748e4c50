"""The comparison of a generating graph with its PyTorch model on real rows: the same logits, and the same answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from distillctl import console, interrupts
from distillctl.errors import GateFailed
from distillctl.runtimes.onnx_generator import OnnxGenerator
from distillctl.tasks.generate.facts import TextParity
from distillctl.tasks.generate.objective import start_token


@dataclass(frozen=True)
class ParityRows:
    """The rows to compare. ids: their names; views, responses: token ids, the responses' with the one that ends
    them."""

    ids: Sequence[str]
    views: Sequence[list[int]]
    responses: Sequence[list[int]]


def views(graph: OnnxGenerator, tokenizer: Any, ids: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of the views, by `tokenizer.json` alone. Raise GateFailed when transformers makes others."""
    cut = graph.tokenizer.truncation
    options = {"truncation": True, "max_length": cut["max_length"]} if cut else {}
    encoded = [graph.encode(text) for text in texts]
    for row, here, elsewhere in zip(ids, encoded, tokenizer(list(texts), **options).input_ids, strict=True):
        if here != elsewhere:
            raise GateFailed(
                f"tokenizer.json gives {len(here)} tokens {here[:8]} …, transformers {len(elsewhere)} tokens "
                f"{elsewhere[:8]} …",
                where=f"row {row}",
                next="choose a student whose tokenizer is a fast one",
            )
    return encoded


def check_parity(
    model: PreTrainedModel, graph: OnnxGenerator, rows: ParityRows, *, allowed: float, prompts: int, max_new_tokens: int
) -> TextParity:
    """Compare the logits of every response token under teacher forcing, and greedy answers to the first ``prompts``
    views.

    allowed: the largest |Δlogit| as a share of the row's largest |logit|. Raise GateFailed with the row that is
    furthest off, or the first one that is answered otherwise, unless two logits tie there.
    """
    model.eval()
    worst = _logits(model, graph, rows, allowed)
    answered = list(zip(rows.ids, rows.views, strict=True))[:prompts]
    ties = 0
    with console.progress("parity: answers", len(answered)) as bar:
        for row, view in answered:
            interrupts.raise_if_pending()
            ties += not _same_answer(model, graph, row, view, allowed, max_new_tokens)
            bar.advance()
    return TextParity(
        max_logit_difference=worst,
        rows=len(rows.ids),
        prompts=len(answered),
        equal_prompts=len(answered) - ties,
        ties=ties,
    )


# ── logits ───────────────────────────────────────────────────────────────────────────────────────


def _logits(model: PreTrainedModel, graph: OnnxGenerator, rows: ParityRows, allowed: float) -> float:
    differences = []
    with console.progress("parity: logits", len(rows.ids)) as bar:
        for view, response in zip(rows.views, rows.responses, strict=True):
            interrupts.raise_if_pending()
            expected, actual = forced(model, view, response), graph.score(view, response)
            differences.append(_difference(expected, actual))
            bar.advance()
    beyond = [not difference <= allowed for difference in differences]  # NaN is beyond
    worst = int(np.argmax(differences))
    if any(beyond):
        raise GateFailed(
            f"ONNX Runtime and PyTorch differ in a logit by {differences[worst]:.3g} of the largest one, {allowed:.3g} "
            f"is allowed ({sum(beyond)} of {len(beyond)} rows are beyond it)",
            where=f"row {rows.ids[worst]}",
            next="--set export.builder=trace, or if such a difference does not matter to you, raise "
            "export.max_logit_difference",
        )
    return differences[worst]


def _difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return max |Δlogit| / max |logit|; logits that are −∞ in both are equal."""
    with np.errstate(invalid="ignore"):
        differences = np.where(expected == actual, 0, np.abs(expected - actual))
    return float(differences.max() / np.abs(expected[np.isfinite(expected)]).max())


@torch.inference_mode()
def forced(model: PreTrainedModel, view: Sequence[int], response: Sequence[int]) -> np.ndarray:
    """Return PyTorch's logits that predict each token of ``response`` after ``view``, float32 [R, V]."""
    if model.config.is_encoder_decoder:
        ids = [start_token(model), *response[:-1]]
        logits = model(input_ids=torch.tensor([view]), decoder_input_ids=torch.tensor([ids])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*view, *response[:-1]]])).logits[0, len(view) - 1 :]
    scores: np.ndarray = logits.float().numpy()
    return scores


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def _same_answer(
    model: PreTrainedModel, graph: OnnxGenerator, row: str, view: Sequence[int], allowed: float, limit: int
) -> bool:
    """Tell whether the answers are the same. Raise GateFailed where they part elsewhere than at a tie."""
    actual = graph.generate(view, limit)
    expected = greedy(model, view, graph.stop_ids, len(actual) if actual[-1] not in graph.stop_ids else limit)
    if actual == expected:
        return True
    at = next(place for place, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b)
    logits = forced(model, view, expected[: at + 1])[at]
    gap = float(abs(logits[expected[at]] - logits[actual[at]]))
    bound = allowed * float(np.abs(logits[np.isfinite(logits)]).max())
    if gap < bound:
        return False
    raise GateFailed(
        f"token {at + 1} of the answer differs: PyTorch says {_shown(graph, expected[: at + 1])}, ONNX Runtime "
        f"{_shown(graph, actual[: at + 1])}; the two logits are {gap:.3g} apart, which is no tie at an allowed "
        f"difference of {bound:.3g}",
        where=f"row {row}",
        next="--set export.builder=trace",
    )


@torch.inference_mode()
def greedy(model: PreTrainedModel, view: Sequence[int], stop_ids: Collection[int], limit: int) -> list[int]:
    """Return PyTorch's likeliest token at each step, up to and with a stop id: no forced tokens, no penalties."""
    encoded = None
    if model.config.is_encoder_decoder:
        encoded, step = model.get_encoder()(input_ids=torch.tensor([view])), torch.tensor([[start_token(model)]])
    else:
        step = torch.tensor([view])
    answer: list[int] = []
    past = None
    while len(answer) < limit and not (answer and answer[-1] in stop_ids):
        if encoded is None:
            output = model(input_ids=step, past_key_values=past, use_cache=True)
        else:
            output = model(encoder_outputs=encoded, decoder_input_ids=step, past_key_values=past, use_cache=True)
        past = output.past_key_values
        answer.append(int(output.logits[0, -1].argmax()))
        step = torch.tensor([answer[-1:]])
    return answer


def _shown(graph: OnnxGenerator, ids: list[int]) -> str:
    return repr(graph.decode(ids[-8:]))
