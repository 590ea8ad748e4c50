"""Score texts row by row and as a corpus; every figure is a share from 0 to 1.

Intervals are over rows, so an arm's score is the mean of its rows. chrF and BLEU are usually published for a corpus,
where n-grams are counted over all rows before the division; `corpus` returns those, divided by 100. Two texts that are
equal after stripping score 1, empty ones too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from distillctl.errors import UnavailableError
from distillctl.metrics import fields, names

# Effective order only matters for texts without any 4-gram, which would otherwise score 0 even if right.
_SACREBLEU: dict[str, Any] = {
    "chrf": CHRF(),
    "chrf++": CHRF(word_order=2),
    "bleu": BLEU(effective_order=True, force=True),
}


def metric_name(metric: str, references: Sequence[str | None]) -> str:
    """Return the metric's name: `chrf` with a reference for every row, otherwise `chrf vs ceiling`."""
    return metric if not names.measures_content(metric) or _complete(references) else names.vs_ceiling(metric)


def row_scores(
    metric: str,
    texts: Sequence[str],
    references: Sequence[str | None],
    ceiling_texts: Sequence[str],
    pattern: str | None,
) -> np.ndarray:
    """Return each row's score, float64 [N] in 0…1, against its reference, or against the ceiling unless every row has
    one.

    `format`: the whole text matches ``pattern``; `fields`: the share of equal values of two JSON objects (`fields`);
    `exact`: equal after stripping; `chrf`: chrF2 (Popović 2015); `chrf++`: chrF2++ (Popović 2017); `bleu`: sentence
    BLEU with effective order and exponential smoothing (Post 2018, sacreBLEU); `rouge_l`: F1 of the longest common
    subsequence of words (Lin 2004). Raises UnavailableError if rouge_l's package is not installed.
    """
    if metric == "format":
        fits = re.compile(pattern or "").fullmatch
        return np.array([fits(text) is not None for text in texts], dtype=np.float64)
    similarity = _similarity(metric)
    pairs = zip(texts, targets(references, ceiling_texts), strict=True)
    return np.array([1.0 if _same(*pair) else similarity(*pair) for pair in pairs], dtype=np.float64)


def corpus(
    metrics: Sequence[str],
    texts: Sequence[str],
    references: Sequence[str | None],
    ceiling_texts: Sequence[str],
    pattern: str | None,
) -> dict[str, float]:
    """Return metric → its value for at least one row: corpus chrF and BLEU, means of the others.

    `chrf` and `bleu` are sacreBLEU's with its defaults (13a tokens, exponential smoothing), from 0 to 1 like the
    others.
    """
    values = {}
    wanted = targets(references, ceiling_texts)
    for metric in metrics:
        if metric not in _SACREBLEU:
            values[metric] = float(row_scores(metric, texts, references, ceiling_texts, pattern).mean())
        elif all(map(_same, texts, wanted)):
            values[metric] = 1.0
        else:
            values[metric] = _share(_SACREBLEU[metric].corpus_score(list(texts), [wanted]).score)
    return values


def _complete(references: Sequence[str | None]) -> bool:
    return all(reference is not None for reference in references)


def targets(references: Sequence[str | None], ceiling_texts: Sequence[str]) -> list[str]:
    """Return the texts that answers are compared with: the references if every row has one, else the ceiling's."""
    return [str(reference) for reference in references] if _complete(references) else list(ceiling_texts)


def _same(text: str, target: str) -> bool:
    return text.strip() == target.strip()


def _similarity(metric: str) -> Callable[[str, str], float]:
    """Return a function (text, target) → 0…1, for texts that differ."""
    if metric == "exact":
        return lambda text, target: 0.0
    if metric == "fields":
        return fields.share_equal
    if metric == "rouge_l":
        return _rouge_l()
    return lambda text, target: _share(_SACREBLEU[metric].sentence_score(text, [target]).score)


def _share(score: float) -> float:
    """Convert sacreBLEU's 0…100, which can be slightly exceeded."""
    return min(1.0, score / 100)


class _Words:
    """Split text into lower-case words of any script. rouge_score's tokenizer drops letters beyond ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


@functools.cache
def _rouge_l() -> Callable[[str, str], float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UnavailableError(
            "the metric rouge_l needs rouge-score", where="task.metrics", next="pip install distillctl[rouge]"
        ) from None
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return lambda text, target: float(scorer.score(target, text)["rougeL"].fmeasure)
