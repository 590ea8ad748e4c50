"""Which smaller graph to deploy: all are measured on the same rows, gated, and the smallest inside the gate wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from distillctl.metrics import scores
from distillctl.recipe import Gate
from distillctl.runtimes.onnxruntime import OnnxClassifier

BLOCK = 20
"""Rows one graph answers before the next has its turn, so that a machine's changing speed is shared."""
SAME_SIZE = 0.01
"""Files whose sizes differ by less than this share tie. Per-channel weights carry a scale and a zero point per output,
5 bytes beside some hundreds of weights (0.45 % of MiniLM's file): a difference no phone notices."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class HeldOut:
    """The eval rows: texts, normalised log-probabilities [N, K] of the fp32 student and of the calibrated teacher, and
    the index of the right label, int [N] (None without references)."""

    texts: Sequence[str]
    student: np.ndarray
    teacher: np.ndarray
    truth: np.ndarray | None

    def score(self, log_probs: np.ndarray) -> float | None:
        """Accuracy of the top label; None without references."""
        return None if self.truth is None else float((log_probs.argmax(-1) == self.truth).mean())


@dataclass(frozen=True)
class Answers:
    """One graph on all rows: normalised log-probabilities float32 [N, K], milliseconds [N]."""

    log_probs: np.ndarray
    milliseconds: np.ndarray

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.milliseconds))


@dataclass(frozen=True)
class Candidate:
    """A graph's figures: KL(fp32 student ‖ it) and KL(teacher ‖ it) in nats, None where not finite. why: the bounds of
    the gate it breaks."""

    name: str
    bytes: int
    kl: float | None
    kl_teacher: float | None
    same_top: float
    score: float | None
    p50_ms: float
    why: str | None

    @property
    def inside(self) -> bool:
        return self.why is None


def measure(
    graphs: Mapping[str, OnnxClassifier], texts: Sequence[str], advance: Callable[[int], None] = lambda rows: None
) -> dict[str, Answers]:
    """Every graph on every text, one at a time from text to logits. The graphs take turns block by block, another one
    first each time; ``advance`` is told the rows of each block done by all."""
    names = list(graphs)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn, start in enumerate(range(0, len(texts), BLOCK)):
        block = texts[start : start + BLOCK]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for text in block:
                begin = time.perf_counter()
                answer = graphs[name].logits([text])
                seconds[name].append(time.perf_counter() - begin)
                logits[name].append(answer)
        advance(len(block))
    return {
        name: Answers(log_softmax(np.concatenate(logits[name]), axis=-1), np.array(seconds[name]) * 1e3)
        for name in names
    }


def judge(name: str, size: int, answers: Answers, rows: HeldOut, gate: Gate) -> Candidate:
    """The figures of one candidate of ``size`` bytes, and whether they are inside the gate."""
    kl = scores.kl(rows.student, answers.log_probs)
    same_top = scores.same_top(rows.student, answers.log_probs)
    score, fp32_score = rows.score(answers.log_probs), rows.score(rows.student)
    broken = []
    if not kl <= gate.max_kl:  # NaN too
        broken.append(f"kl {kl:.4f} > {gate.max_kl}")
    if same_top < gate.min_same_top:
        broken.append(f"same_top {same_top:.4f} < {gate.min_same_top}")
    if score is not None and fp32_score is not None and fp32_score - score > gate.max_score_drop + _ROUNDING:
        broken.append(f"score {score:.4f}, a drop of {fp32_score - score:.4f} > {gate.max_score_drop}")
    return Candidate(
        name=name,
        bytes=size,
        kl=_finite(kl),
        kl_teacher=_finite(scores.kl(rows.teacher, answers.log_probs)),
        same_top=same_top,
        score=score,
        p50_ms=answers.p50_ms,
        why="; ".join(broken) or None,
    )


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The smallest inside the gate; of those that tie with it (`SAME_SIZE`), the one of the lowest KL, then the
    fastest. None when none is inside."""
    inside = [candidate for candidate in candidates if candidate.inside]
    if not inside:
        return None
    largest = min(candidate.bytes for candidate in inside) * (1 + SAME_SIZE)
    tied = [candidate for candidate in inside if candidate.bytes <= largest]
    return min(tied, key=lambda candidate: (candidate.kl, candidate.p50_ms))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
