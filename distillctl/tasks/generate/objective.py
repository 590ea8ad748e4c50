"""The objective of learning to generate, and greedy answers.

Loss and figures are over response tokens under teacher forcing. A decoder reads view and response in one sequence: with
a view of L tokens and a response of R, its hidden states L−1 … L+R−2 predict the response. An encoder–decoder reads the
view in its encoder, and its decoder's states 0 … R−1 over the start token and all of the response but the last do so.
Rows are padded on the right, where no state that is used can see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from distillctl import console, interrupts, ranks
from distillctl.data import batching
from distillctl.losses import token_loss
from distillctl.losses.chunked_head import chunked
from distillctl.losses.heads import Head, head_of, hidden_states
from distillctl.losses.targets import DenseTargets, MeasuredTargets, SampledTargets, Targets, TopKTargets
from distillctl.recipe import CrossEntropy, LossTerm, Train
from distillctl.students.student import Student
from distillctl.tasks.generate.facts import KlFacts
from distillctl.tasks.generate.response_rows import ResponseRows, decoder_positions
from distillctl.training import collectives
from distillctl.training.learner import Batch

AT_ONCE = 2**26
"""The most probabilities of the teacher in memory at once: 256 MiB."""


class Generation:
    """A `TrainingObjective` of the loop."""

    def __init__(self, train: ResponseRows, validation: ResponseRows, terms: Sequence[LossTerm], spec: Train) -> None:
        self.train, self.validation, self.terms, self.spec = train, validation, terms, spec
        self.lengths, self.positions = train.lengths, train.positions

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        targets = self.train.targets(batch).to(model.device)
        weights = None
        if self.train.weights is not None:
            weights = torch.from_numpy(self.train.weights(batch)).to(model.device)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            values = token_loss.token_loss(self.terms, targets.rows(rows), logits)
            return values if weights is None else values * weights[rows]

        total, *_ = chunked(response_states(model, self.train, batch), _head(model, self.train), loss)
        return total

    def held_out(self, model: PreTrainedModel) -> tuple[float, dict[str, float]]:
        """Return the held-out KL and all figures; a run without distributions is led by the responses' −log Q."""
        figures = score(model, self.validation, self.spec).figures
        knows = "kl" in figures and any(term.needs_distribution for term in self.terms)
        return figures["kl" if knows else "nll"], figures


# ── teacher forcing ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scores:
    """The student's figures under teacher forcing: means over each row's response tokens, float64 [N].

    kl, nll: KL(P‖Q) at T = 1 and −log Q(response), in nats; same_top: the share with the teacher's top token; tokens:
    the number of response tokens, int64 [N].

    KL is over the student's vocabulary, the teacher's probabilities normalised there; dropped is the mass it has
    outside. Both are NaN where P is not known. ``lumped``: of P only the likeliest tokens are known (a server shows no
    more), and KL counts all others as one outcome, which can only make it less.
    """

    kl: np.ndarray
    nll: np.ndarray
    same_top: np.ndarray
    dropped: np.ndarray
    tokens: np.ndarray
    lumped: bool = False
    top_tokens: np.ndarray | None = None
    """1 where a token is the teacher's top one, float64 [N, R]; beyond a row's ``tokens`` the values mean nothing."""

    @property
    def agreements(self) -> list[np.ndarray]:
        """Return `top_tokens` of each row, bool [R]."""
        assert self.top_tokens is not None
        return [row[:count] > 0 for row, count in zip(self.top_tokens, self.tokens.tolist(), strict=True)]

    @property
    def figures(self) -> dict[str, float]:
        """Return `kl` (where it is known), `nll` and `agreement`: means over the tokens of all measured rows."""
        rows = {"kl": self.kl, "nll": self.nll, "agreement": self.same_top}
        means = {name: per_token(values, self.tokens) for name, values in rows.items()}
        return {name: value for name, value in means.items() if not np.isnan(value)}

    @property
    def kl_facts(self) -> KlFacts:
        """Return the rows and tokens that the KL covers."""
        measured, dropped = ~np.isnan(self.kl), per_token(self.dropped, self.tokens)
        return KlFacts(
            kl_rows=int(measured.sum()),
            kl_lumped=self.lumped,
            dropped_mass=None if np.isnan(dropped) else dropped,
        )


def per_token(rows: np.ndarray, tokens: np.ndarray) -> float:
    """Return the mean over all tokens from means [N] over each row's ``tokens``, without NaN rows; NaN of none."""
    known = ~np.isnan(rows) & (tokens > 0)
    return float(np.average(rows[known], weights=tokens[known])) if known.any() else math.nan


@torch.inference_mode()
def score(model: PreTrainedModel, rows: ResponseRows, spec: Train) -> Scores:
    """Score the student on ``rows`` under teacher forcing, in batches by length; figures are in the order of the rows.

    Ranks share the batches, and all get all results.
    """
    model.eval()
    means, lumped, tokens = np.zeros((4, len(rows.views))), False, rows.positions
    top_tokens = np.zeros((len(rows.views), int(tokens.max(initial=0))))
    batches = batching.by_length(rows.lengths, max_rows=spec.batch_rows, max_tokens=spec.batch_tokens)
    for batch in ranks.share([part for whole in batches for part in _parts(whole, tokens, rows.vocabulary)]):
        targets = rows.targets(batch).to(model.device)
        lumped = isinstance(targets, TopKTargets)
        _, *figures = chunked(
            response_states(model, rows, batch),
            _head(model, rows),
            lambda logits, part, targets=targets: token_figures(targets.rows(part), logits),  # type: ignore[misc]
        )
        dropped = getattr(targets, "dropped", None)
        figures.append(torch.full_like(figures[0], torch.nan) if dropped is None else dropped)
        parts = torch.stack([each.double() for each in figures]).cpu().split(tokens[batch].tolist(), -1)
        means[:, batch] = torch.stack([part.mean(-1) for part in parts], -1).numpy()
        for row, part in zip(batch, parts, strict=True):
            top_tokens[row, : part.shape[-1]] = part[1].numpy()
    nll, same_top, kl, dropped_mass = collectives.summed(means)
    return Scores(kl, nll, same_top, dropped_mass, tokens, collectives.any_of(lumped), collectives.summed(top_tokens))


def _parts(batch: Batch, tokens: np.ndarray, vocabulary: int) -> Iterator[Batch]:
    """Split the batch into runs of rows whose distributions fit into memory together."""
    part: list[int] = []
    for row in batch:
        if part and (tokens[part].sum() + tokens[row]) * vocabulary > AT_ONCE:
            yield part
            part = []
        part.append(int(row))
    yield part


def response_states(model: PreTrainedModel, rows: ResponseRows, batch: Batch) -> Tensor:
    """Return the hidden states [N, D] that predict the response tokens of a batch, row after row."""
    inputs, places = model_inputs(model, rows, batch)
    return hidden_states(model, inputs).flatten(0, 1)[places]


def model_inputs(model: PreTrainedModel, rows: ResponseRows, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Return the model's inputs for a batch, int64 [B, T], and the places of `response_states` among its B · T
    states."""
    views, responses = [rows.views[row] for row in batch], [rows.responses[row] for row in batch]
    if model.config.is_encoder_decoder:
        start = start_token(model)
        decoder_ids = _padded(model, [[start, *response[:-1]] for response in responses])["input_ids"]
        inputs = _padded(model, views) | {"decoder_input_ids": decoder_ids}
        first, width = [0] * len(batch), decoder_ids.shape[1]
    else:
        inputs = _padded(model, [[*view, *response[:-1]] for view, response in zip(views, responses, strict=True)])
        first, width = [len(view) - 1 for view in views], inputs["input_ids"].shape[1]
    places = [
        row * width + at + torch.arange(len(response))
        for row, (at, response) in enumerate(zip(first, responses, strict=True))
    ]
    return inputs, torch.cat(places).to(model.device)


def start_token(model: PreTrainedModel) -> int:
    """Return the token that an encoder–decoder's decoder reads first."""
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    return int(model.config.decoder_start_token_id if start is None else start)


def _head(model: PreTrainedModel, rows: ResponseRows) -> Head:
    """Return the model's head without the rows that only pad the vocabulary to a round size."""
    head = head_of(model)
    if len(head.weight) <= rows.vocabulary:
        return head
    bias = None if head.bias is None else head.bias[: rows.vocabulary]
    return replace(head, weight=head.weight[: rows.vocabulary], bias=bias)


def token_figures(targets: Targets, logits: Tensor) -> tuple[Tensor, ...]:
    """Return −log Q of the response's tokens, whether Q's top token is the teacher's (1 or 0), and KL(P‖Q), [n] each.

    Logarithms are natural. KL is NaN where the teacher's distribution P is not known.
    """
    nll = token_loss.token_loss((CrossEntropy(),), targets, logits)
    match targets:
        case DenseTargets():
            top = targets.log_probs.argmax(-1)
        case MeasuredTargets():
            top = targets.log_probs.argmax(-1).where(~targets.log_tail.isnan(), targets.token_ids)
        case TopKTargets():
            top = targets.ids.gather(-1, targets.log_probs.argmax(-1, keepdim=True)).squeeze(-1)
        case _:  # the response itself, which is the teacher's choice where it answered greedily
            top = targets.token_ids
    same_top = (logits.argmax(-1) == top).to(nll.dtype)
    known = isinstance(targets, DenseTargets | MeasuredTargets | TopKTargets | SampledTargets)
    return nll, same_top, token_loss.kl(targets, logits) if known else torch.full_like(nll, torch.nan)


def _padded(model: PreTrainedModel, rows: Sequence[list[int]], *, left: bool = False) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, int64 [B, T], on the model's device."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap, seen = [0] * (width - len(row)), [1] * len(row)
        filler = [model.config.pad_token_id or 0] * len(gap)
        ids.append(filler + row if left else row + filler)
        mask.append(gap + seen if left else seen + gap)
    return {
        name: torch.tensor(value).to(model.device) for name, value in (("input_ids", ids), ("attention_mask", mask))
    }


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def greedy_config(model: PreTrainedModel, stop_ids: Iterable[int], max_new_tokens: int) -> GenerationConfig:
    """Return a configuration of greedy decoding that ends at ``stop_ids``.

    The pretrained model's own settings (beams, penalties …) are left out.
    """
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        bos_token_id=getattr(model.config, "bos_token_id", None),  # T5 has none
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=start_token(model) if model.config.is_encoder_decoder else None,
    )


@torch.inference_mode()
def answers(
    student: Student,
    views: Sequence[list[int]],
    stop_ids: Iterable[int],
    max_new_tokens: int,
    batch_tokens: int,
) -> list[list[int]]:
    """Return greedy answers to views in the student's tokens.

    Each answer includes the stop token that ended it, or is ``max_new_tokens`` long. batch_tokens: views and answers of
    one batch at most, padding included. Rows do not depend on their batch. Ranks share the batches, and all get all
    answers.
    """
    model, stop = student.model.eval(), set(stop_ids)
    limit = min(max_new_tokens, decoder_positions(student)) if student.is_encoder_decoder else max_new_tokens
    previous_config, model.generation_config = model.generation_config, greedy_config(model, stop, limit)
    answer_of: dict[int, list[int]] = {}
    lengths = [len(view) + limit for view in views]
    try:
        with console.progress("answers", total=len(views)) as bar, console.libraries_quiet():
            batches = batching.by_length(lengths, max_rows=len(views), max_tokens=batch_tokens)
            for batch in ranks.share(batches):
                interrupts.raise_if_pending()
                inputs = _padded(model, [views[row] for row in batch], left=not student.is_encoder_decoder)
                skip = 1 if student.is_encoder_decoder else inputs["input_ids"].shape[1]
                generated = model.generate(**inputs)[:, skip:].tolist()
                for row, ids in zip(batch, generated, strict=True):
                    end = next((place + 1 for place, token in enumerate(ids) if token in stop), len(ids))
                    answer_of[row] = ids[:end]
                bar.advance(len(batch) * ranks.count())
    finally:
        model.generation_config = previous_config
    answer_of = collectives.gathered(answer_of)
    return [answer_of[row] for row in range(len(views))]
