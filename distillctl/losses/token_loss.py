"""The training objective: a weighted sum of loss terms, one value per response position, for all kinds of targets.

A whole distribution is compared outcome by outcome. Next to the k likeliest tokens, all others are one more outcome on
both sides: Σ_S P log(P/Q) + p̄ log(p̄/q̄), and so on for every divergence; lumping can increase none of them
(renormalising the head instead does; Anshumann et al. 2025, "Sparse Logit Sampling"). Drawn tokens give an unbiased
gradient of the forward KL at T = 1, and its value as `_drawn_kl` says. Draws from the tail restore the part of the
forward KL that lumping hides, p̄ KL(P/p̄ ‖ Q/q̄). Natural logs; float32, or float64 if the logits are.

P and Q are both over the student's vocabulary. If it was trimmed, the teacher's probabilities were renormalised over
the tokens that stayed, so no KL is below 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from distillctl.errors import RecipeError
from distillctl.losses.cross_tokenizer import uld
from distillctl.losses.divergences import cross_entropy
from distillctl.losses.subset_log_probs import LOG_ZERO, SubsetLogProbs, precise, subset_log_probs
from distillctl.losses.targets import (
    AlignedTargets,
    DenseTargets,
    MeasuredTargets,
    SampledTargets,
    Targets,
    TopKTargets,
)
from distillctl.recipe import ForwardKL, LossTerm, implementation

Compare = Callable[[LossTerm], Tensor]
"""Term → its value [N], without its weight and T²."""


def token_loss(terms: Sequence[LossTerm], targets: Targets, logits: Tensor) -> Tensor:
    """Return the loss per position [N] from the student's logits [N, V], any float dtype.

    The temperature applies to both sides, and the KL family is multiplied by T², which keeps gradients of one size
    (Hinton et al. 2015, section 2). Raises RecipeError if the targets lack what a term needs.
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
    """Return KL(P‖Q) in nats [N] at T = 1 over the student's vocabulary; never below 0 except by rounding.

    `DenseTargets` and `MeasuredTargets` give the exact KL, the k likeliest tokens with one outcome for all others a
    lower bound, draws an estimate.
    """
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
        case MeasuredTargets():
            return _measured(targets, logits, temperature)
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
    # The drawn tokens, and the response token unless it is among the k, belong to the others.
    rest = torch.cat([named.once[:, k:], named.log_rest.unsqueeze(-1)], -1).logsumexp(-1)
    p = torch.cat([head, log_tail.unsqueeze(-1)], -1)
    q = torch.cat([named.log_probs[:, :k], rest.unsqueeze(-1)], -1)
    # A missing rank, or a student without tokens beyond the k: no such outcome on either side.
    p = p.masked_fill(q <= LOG_ZERO / 2, LOG_ZERO)

    def compare(term: LossTerm) -> Tensor:
        if term.kind == "uld":
            return uld(head, _student(logits, temperature), log_tail)
        if not term.needs_distribution:
            return _response(targets, named)
        value = _call(term, p, q)
        if drawn is not None and term.kind == "forward_kl":
            value = value + _drawn_kl(drawn, log_tail, named.log_probs[:, k:-1], rest)
        return value

    return compare


def _sampled(targets: SampledTargets, logits: Tensor, temperature: float) -> Compare:
    named = _with_response(targets, targets.ids, logits, temperature)

    def compare(term: LossTerm) -> Tensor:
        if not term.needs_distribution:
            return _response(targets, named)
        if term.kind != "forward_kl" or temperature != 1:
            raise _refused(term, "drawn tokens", "forward_kl or cross_entropy at temperature 1")
        whole = named.log_rest.new_zeros(len(targets))
        return _drawn_kl(targets, whole, named.log_probs[:, :-1], whole)

    return compare


def _drawn_kl(drawn: SampledTargets, log_p: Tensor, log_q: Tensor, log_rest: Tensor) -> Tensor:
    """Estimate p̄ KL(P/p̄ ‖ Q/q̄) [N] over the tokens that were drawn from.

    log_p, log_rest: log p̄ and log q̄ [N], the mass of these tokens under teacher and student. log_q: log Q of the
    drawn tokens [N, m]. Each draw counts r − 1 − log r with r = (q/q̄) / (p/p̄) (Schulman 2020, "Approximating KL
    Divergence", k3): −log r alone has the same mean, because r has mean 1, but it can be below 0. r varies more than
    its logarithm, so no gradient flows through it; the gradient of −Σ w log Q is unbiased as well.
    """
    excess = (drawn.log_probs - log_p.unsqueeze(-1)) - (log_q - log_rest.unsqueeze(-1))
    excess = excess.masked_fill(drawn.weights == 0, 0)
    return (drawn.weights * (excess + torch.expm1(-excess).detach())).sum(-1)


def _measured(targets: MeasuredTargets, logits: Tensor, temperature: float) -> Compare:
    def compare(term: LossTerm) -> Tensor:
        if not term.needs_distribution:
            return _text(targets, logits, temperature)(term)
        if term.kind != "forward_kl" or temperature != 1:
            raise _refused(term, "the soft labels of eval rows", "forward_kl at temperature 1")
        q, drawn = logits.double().log_softmax(-1), targets.drawn
        p = pad(targets.log_probs.double(), (0, q.shape[-1] - targets.log_probs.shape[-1]), value=-math.inf)
        named = ~p.isneginf()
        rest = q.masked_fill(named, -torch.inf).logsumexp(-1)
        tail, has_tail = targets.log_tail.double(), ~targets.log_tail.isneginf()
        head = (p.exp() * (p.masked_fill(~named, 0) - q.masked_fill(~named, 0))).sum(-1)
        lumped = (tail.exp() * (tail - rest)).masked_fill(~has_tail, 0)
        log_q = q.gather(-1, drawn.ids.clamp_min(0))
        excess = (drawn.log_probs - tail.unsqueeze(-1)) - (log_q - rest.unsqueeze(-1))
        # So many draws from so little mass need no r − 1. Only their error could take a sum near 0 below 0.
        within = (drawn.weights * excess.masked_fill(drawn.weights == 0, 0)).sum(-1)
        return (head + lumped + within).clamp_min(0).to(precise(logits).dtype)

    return compare


def _aligned(targets: AlignedTargets, logits: Tensor, temperature: float) -> Compare:
    def compare(term: LossTerm) -> Tensor:
        if not term.needs_distribution:
            return _text(targets, logits, temperature)(term)
        if term.kind != "uld":
            raise _refused(term, "a teacher with another tokenizer", "uld or cross_entropy")
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
            raise _refused(term, "the response's text", "cross_entropy")
        none = targets.token_ids.new_empty(len(targets), 0)
        return _response(targets, _with_response(targets, none, logits, temperature))

    return compare


def _call(term: LossTerm, teacher: Tensor, student: Tensor) -> Tensor:
    value: Tensor = implementation(term)(teacher, student, **term.options)
    return value


def _with_response(targets: Targets, ids: Tensor, logits: Tensor, temperature: float) -> SubsetLogProbs:
    """Compute the log-probabilities of ``ids`` [N, m] and, last, of the response token."""
    return subset_log_probs(logits, torch.cat([ids, targets.token_ids.unsqueeze(-1)], -1), temperature)


def _response(targets: Targets, named: SubsetLogProbs) -> Tensor:
    last = named.log_probs.shape[-1] - 1
    return cross_entropy(torch.where(targets.token_ids < 0, -1, last), named.log_probs)


def _student(logits: Tensor, temperature: float) -> Tensor:
    logits = precise(logits)
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    return log_probs if temperature == 1 else (log_probs / temperature).log_softmax(-1)


def _tempered_head(targets: TopKTargets, temperature: float, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return log P of the k tokens [N, k] and of all others [N] at ``temperature``.

    The tail is the whole sum minus the head. Where float32 loses that difference, bounds hold it: Σ p^(1/T) over n
    tokens of mass p̄ is between p̄^(1/T) and n^(1−1/T) p̄^(1/T). n is unknown after trimming, so above T = 1 only the
    lower bound is used.
    """
    if temperature == 1:
        return targets.log_probs, targets.log_tail
    if temperature not in targets.log_sums:
        raise RecipeError(
            f"the soft labels were stored without temperature {temperature:g}",
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


def _refused(term: LossTerm, source: str, alternative: str) -> RecipeError:
    return RecipeError(
        f"{term.kind} at temperature {term.temperature:g} cannot be computed from {source}",
        where="train.loss",
        next=f"use {alternative}, or task.soft_labels: top_k",
    )
