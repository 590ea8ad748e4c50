"""How good one arm's texts are, row by row and as a corpus; every figure is a share from 0 to 1.

Rows are what intervals are drawn over, so an arm's score is the mean of its rows. chrF and BLEU are usually published
for a corpus, where n-grams are counted over all rows before they are divided: `corpus` gives those, divided by 100.
Two texts that are equal once stripped score 1, empty ones too.
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

# Effective order only changes texts so short that they have no 4-gram at all, which would score 0 even when right.
_SACREBLEU: dict[str, Any] = {"chrf": CHRF(), "bleu": BLEU(effective_order=True, force=True)}


def metric_name(metric: str, references: Sequence[str | None]) -> str:
    """What the metric measures: `chrf` with a reference for every row, otherwise `chrf vs ceiling`."""
    return metric if not names.measures_content(metric) or _complete(references) else names.vs_ceiling(metric)


def row_scores(
    metric: str,
    texts: Sequence[str],
    references: Sequence[str | None],
    ceiling_texts: Sequence[str],
    pattern: str | None,
) -> np.ndarray:
    """Each row's score, float64 [N] in 0…1, against the references where every row has one, else against the ceiling.

    `format`: the whole text matches ``pattern``; `fields`: the share of equal values of two JSON objects (`fields`);
    `exact`: equal once stripped; `chrf`: chrF2 (Popović 2015); `bleu`: sentence BLEU with effective order and
    exponential smoothing (Post 2018, sacreBLEU); `rouge_l`: F1 of the longest common subsequence of words (Lin 2004).
    UnavailableError when rouge_l's package is not installed.
    """
    if metric == "format":
        fits = re.compile(pattern or "").fullmatch
        return np.array([fits(text) is not None for text in texts], dtype=np.float64)
    similarity = _similarity(metric)
    pairs = zip(texts, _targets(references, ceiling_texts), strict=True)
    return np.array([1.0 if _same(*pair) else similarity(*pair) for pair in pairs], dtype=np.float64)


def corpus(
    metrics: Sequence[str],
    texts: Sequence[str],
    references: Sequence[str | None],
    ceiling_texts: Sequence[str],
    pattern: str | None,
) -> dict[str, float]:
    """Metric, by the recipe's name for it → its value for at least one row: corpus chrF and BLEU, means of the others.

    `chrf` and `bleu` are sacreBLEU's with its defaults (13a tokens, exponential smoothing), in 0…1 like the rest.
    """
    found = {}
    targets = _targets(references, ceiling_texts)
    for metric in metrics:
        if metric not in _SACREBLEU:
            found[metric] = float(row_scores(metric, texts, references, ceiling_texts, pattern).mean())
        elif all(map(_same, texts, targets)):
            found[metric] = 1.0
        else:
            found[metric] = _share(_SACREBLEU[metric].corpus_score(list(texts), [targets]).score)
    return found


def _complete(references: Sequence[str | None]) -> bool:
    return all(reference is not None for reference in references)


def _targets(references: Sequence[str | None], ceiling_texts: Sequence[str]) -> list[str]:
    return [str(reference) for reference in references] if _complete(references) else list(ceiling_texts)


def _same(text: str, target: str) -> bool:
    return text.strip() == target.strip()


def _similarity(metric: str) -> Callable[[str, str], float]:
    """(text, target) → 0…1, of two texts that differ."""
    if metric == "exact":
        return lambda text, target: 0.0
    if metric == "fields":
        return fields.share_equal
    if metric == "rouge_l":
        return _rouge_l()
    return lambda text, target: _share(_SACREBLEU[metric].sentence_score(text, [target]).score)


def _share(score: float) -> float:
    """Of sacreBLEU's 0…100, which can come out a little above."""
    return min(1.0, score / 100)


class _Words:
    """Words of any script in lower case; rouge_score's own tokenizer, equal on ASCII, drops all other letters."""

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
