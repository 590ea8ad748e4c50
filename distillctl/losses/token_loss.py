"""The training objective: a weighted sum of loss terms, one value per response position, whatever was kept of P.

The whole distribution is compared outcome by outcome. Of the k likeliest tokens all others make one more outcome, on
both sides: Σ_S P log(P/Q) + p̄ log(p̄/q̄), and so on for every divergence, none of which can grow by lumping
(renormalising the head instead inflates it; Anshumann et al. 2025, "Sparse Logit Sampling"). Drawn tokens give the
cross-entropy −Σ w log Q without bias, and with the teacher's entropy the KL; where some of the others were drawn, the
forward KL at T = 1 so regains what the lumped tail hides, p̄ KL(P/p̄ ‖ Q/q̄) over them. Natural logs; float32, or float64
where the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillctl.errors import RecipeError
from distillctl.losses.cross_tokenizer import uld
from distillctl.losses.divergences import cross_entropy
from distillctl.losses.named_tokens import NOTHING, NamedTokens, named_tokens, precise
from distillctl.losses.targets import AlignedTargets, DenseTargets, SampledTargets, Targets, TopKTargets
from distillctl.recipe import ForwardKL, LossTerm, implementation

Compare = Callable[[LossTerm], Tensor]
"""A term's value [N], without its weight and T²."""


def token_loss(terms: Sequence[LossTerm], targets: Targets, logits: Tensor) -> Tensor:
    """Loss per position [N] from the student's logits [N, V], any float dtype.

    The temperature applies to both sides and the KL family is multiplied by T², which keeps gradients of one size
    (Hinton et al. 2015, section 2). RecipeError where the targets do not hold what a term needs.
    """
    total = precise(logits.new_zeros(len(logits)))
    for temperature in dict.fromkeys(term.temperature for term in terms):
        compare = _comparison(targets, logits, temperature)
        for term in terms:
            if term.temperature == temperature:
                scale = temperature**2 if term.squared_temperature else 1.0
                total = total + term.weight * scale * compare(term)
    return total


def kl(targets: Targets, logits: Tensor) -> Tensor:
    """KL(P‖Q) at T = 1, nats [N]: the held-out figure. From the k likeliest alone a lower bound, from draws an
    estimate, which may fall below 0."""
    return _comparison(targets, logits, 1.0)(ForwardKL())


def _comparison(targets: Targets, logits: Tensor, temperature: float) -> Compare:
    if len(targets) != len(logits):
        raise ValueError(f"{len(targets)} targets for {len(logits)} rows of logits")
    match targets:
        case DenseTargets():
            return _dense(targets, logits, temperature)
        case TopKTargets():
            return _top_k(targets, logits, temperature)
        case SampledTargets():
            return _sampled(targets, logits, temperature)
        case AlignedTargets():
            return _aligned(targets, logits, temperature)
        case _:
            return _text(targets, logits, temperature)


def _dense(targets: DenseTargets, logits: Tensor, temperature: float) -> Compare:
    p, q = _tempered(targets.log_probs, temperature), _student(logits, temperature)
    return lambda term: _call(term, p if term.needs_distribution else targets.token_ids, q)


def _top_k(targets: TopKTargets, logits: Tensor, temperature: float) -> Compare:
    head, log_tail = _tempered_head(targets, temperature, logits.shape[-1])
    k, drawn = targets.ids.shape[-1], targets.drawn if temperature == 1 else None
    ids = targets.ids if drawn is None else torch.cat([targets.ids, drawn.ids], -1)
    named = _with_response(targets, ids, logits, temperature)
    # What was drawn, and the response token unless it is among the k, are some of the others.
    rest = torch.cat([named.once[:, k:], named.log_rest.unsqueeze(-1)], -1).logsumexp(-1)
    p = torch.cat([head, log_tail.unsqueeze(-1)], -1)
    q = torch.cat([named.log_probs[:, :k], rest.unsqueeze(-1)], -1)
    # A missing rank, or a student that has no token but the k: no such outcome on either side.
    p = p.masked_fill(q <= NOTHING / 2, NOTHING)

    def compare(term: LossTerm) -> Tensor:
        if term.kind == "uld":
            return uld(head, _student(logits, temperature), log_tail)
        if not term.needs_distribution:
            return _response(targets, named)
        value = _call(term, p, q)
        if drawn is not None and term.kind == "forward_kl":
            within = (named.log_probs[:, k:-1] - rest.unsqueeze(-1)).masked_fill(drawn.ids < 0, 0)
            value = value - (drawn.weights * within).sum(-1) - drawn.entropy
        return value

    return compare


def _sampled(targets: SampledTargets, logits: Tensor, temperature: float) -> Compare:
    named = _with_response(targets, targets.ids, logits, temperature)

    def compare(term: LossTerm) -> Tensor:
        if not term.needs_distribution:
            return _response(targets, named)
        if term.kind != "forward_kl" or temperature != 1:
            raise _refused(term, "drawn tokens", "forward_kl and cross_entropy at temperature 1")
        drawn = named.log_probs[:, :-1].masked_fill(targets.ids < 0, 0)
        return -(targets.weights * drawn).sum(-1) - targets.entropy

    return compare


def _aligned(targets: AlignedTargets, logits: Tensor, temperature: float) -> Compare:
    def compare(term: LossTerm) -> Tensor:
        if not term.needs_distribution:
            return _text(targets, logits, temperature)(term)
        if term.kind != "uld":
            raise _refused(term, "a teacher with another tokenizer", "uld and cross_entropy")
        q, teacher = _student(logits, temperature), targets.teacher
        if isinstance(teacher, TopKTargets):
            head, log_tail = _tempered_head(teacher, temperature, logits.shape[-1])
            value = uld(head, q, log_tail)
        else:
            value = uld(_tempered(teacher.log_probs, temperature), q)
        return value.where(targets.has_counterpart, 0)

    return compare


def _text(targets: Targets, logits: Tensor, temperature: float) -> Compare:
    def compare(term: LossTerm) -> Tensor:
        if term.needs_distribution:
            raise _refused(term, "the response alone", "cross_entropy")
        none = targets.token_ids.new_empty(len(targets), 0)
        return _response(targets, _with_response(targets, none, logits, temperature))

    return compare


def _call(term: LossTerm, teacher: Tensor, student: Tensor) -> Tensor:
    value: Tensor = implementation(term)(teacher, student, **term.options)
    return value


def _with_response(targets: Targets, ids: Tensor, logits: Tensor, temperature: float) -> NamedTokens:
    """``ids`` [N, m] and, last, the response token."""
    return named_tokens(logits, torch.cat([ids, targets.token_ids.unsqueeze(-1)], -1), temperature)


def _response(targets: Targets, named: NamedTokens) -> Tensor:
    last = named.log_probs.shape[-1] - 1
    return cross_entropy(torch.where(targets.token_ids < 0, -1, last), named.log_probs)


def _student(logits: Tensor, temperature: float) -> Tensor:
    logits = precise(logits)
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    return log_probs if temperature == 1 else (log_probs / temperature).log_softmax(-1)


def _tempered_head(targets: TopKTargets, temperature: float, vocabulary: int) -> tuple[Tensor, Tensor]:
    """log P of the k [N, k] and of all others [N] at ``temperature``.

    The tail is what the head leaves of the whole sum. Where that difference is lost in float32, bounds hold it: Σ
    p^(1/T) over n tokens of mass p̄ lies between p̄^(1/T) and n^(1−1/T) p̄^(1/T). How many they are is not known after
    trimming, so above T = 1 only the lower one is used.
    """
    if temperature == 1:
        return targets.log_probs, targets.log_tail
    if temperature not in targets.log_sums:
        raise RecipeError(
            f"the soft labels were kept without temperature {temperature:g}",
            where="train.loss",
            next=f"add {temperature:g} to task.soft_labels.temperatures and run distillctl collect again",
        )
    log_sum = targets.log_sums[temperature]
    head = targets.log_probs / temperature - log_sum.unsqueeze(-1)
    tail = (-torch.expm1(head.double().logsumexp(-1))).clamp_min(0).log()
    alone = targets.log_tail / temperature - log_sum
    if temperature > 1:
        return head, torch.maximum(tail.to(head.dtype), alone)
    spread = (1 - 1 / temperature) * math.log(vocabulary)
    return head, tail.to(head.dtype).clamp(alone + spread, alone)


def _refused(term: LossTerm, kept: str, left: str) -> RecipeError:
    return RecipeError(
        f"{term.kind} at temperature {term.temperature:g} cannot be had from {kept}",
        where="train.loss",
        next=f"use {left}, or task.soft_labels: top_k",
    )
