"""Find the rows that a served teacher measured, leave out the others, and caution about them.

A server shows only its likeliest tokens. If they do not tell which label is likeliest, the row was not measured. It is
left out of training and of the scores of every arm, so that arms stay paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from distillctl import cautions
from distillctl.errors import RecipeError
from distillctl.soft_labels import labels as labels_of
from distillctl.soft_labels.coverage import CoverageFacts, LeftOutRows, UnseenLabels
from distillctl.soft_labels.label_shards import SoftLabels

MAY_BE_UNMEASURED = 0.05
"""Largest share of a split's rows that may be left out. Beyond it the recipe is refused: the rest may be the easy
rows."""
MAY_BE_UNKNOWN = 0.02
"""Mean share of a row's label mass in upper bounds, from which a caution is given."""
_THINKS = "<think"
"""The beginning of a reasoning model's thoughts, which come before its answer."""
_EXAMPLES = 3

Labels = Mapping[tuple[str, str], SoftLabels]
"""(arm, split) → all rows."""


def rows(stored: Labels, log_prior: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return split → bool [N], the rows that are measured in all arms."""
    measured: dict[str, np.ndarray] = {}
    for (_, split), labels in stored.items():
        kept = _measured(labels, log_prior)
        measured[split] = measured[split] & kept if split in measured else kept
    return measured


def _measured(labels: SoftLabels, log_prior: np.ndarray | None) -> np.ndarray:
    log_probs = labels.log_probs if log_prior is None else labels.log_probs - log_prior
    measured: np.ndarray = labels_of.measured(log_probs, labels.seen) & ~_thinks(labels)
    return measured


def _thinks(labels: SoftLabels) -> np.ndarray:
    """Return bool [N], the rows that the teacher would answer with its thoughts, so that its labels mean nothing."""
    tokens = (labels.next_token if labels.seen is not None else None) or [""] * len(labels.ids)
    return np.array([token.lstrip().startswith(_THINKS) for token in tokens], bool)


def check_coverage(stored: Labels, measured: Mapping[str, np.ndarray], log_prior: np.ndarray | None = None) -> None:
    """Raise RecipeError if too many rows of a split are not measured."""
    for split, kept in measured.items():
        if (~kept).mean() <= MAY_BE_UNMEASURED:
            continue
        missing = {
            arm: ~_measured(labels, log_prior) for (arm, arm_split), labels in stored.items() if arm_split == split
        }
        arm = max(missing, key=lambda name: int(missing[name].sum()))
        labels, unmeasured = stored[arm, split], missing[arm]
        thinking = _thinks(labels) & unmeasured
        next_tokens = [repr(token) for token, out in zip(labels.next_token or [], unmeasured, strict=False) if out]
        shown = ", ".join(list(dict.fromkeys(next_tokens))[:_EXAMPLES])
        raise RecipeError(
            f"{(~kept).sum():,} of {len(kept):,} {split} rows are not measured: the tokens that the server shows do "
            "not tell which label is the likeliest"
            + (f"; the teacher would rather write {shown} there" if shown else ""),
            where=f"contexts.{arm}" if arm in ("full", "simplified") else f"contexts.arms.{arm}",
            next=_THINKING if thinking.sum() * 2 > unmeasured.sum() else _ADVICE,
        )


_THINKING = (
    "switch off its thinking (teacher.chat_template_kwargs: {enable_thinking: false}), or use a teacher that answers "
    "at once; the answers so far are kept"
)
_ADVICE = (
    "ask for more tokens (teacher.top_logprobs), use label words that the teacher would say, end the template where an "
    "answer follows, or use teacher.api: completions with teacher.tokenizer; the answers so far are kept"
)


def coverage_facts(stored: Labels, measured: Mapping[str, np.ndarray]) -> CoverageFacts:
    """Return what the manifest records about unmeasured rows, and give cautions."""
    if all(labels.seen is None for labels in stored.values()):
        return CoverageFacts(unmeasured=None, unseen=None)
    left_out = {split: int((~kept).sum()) for split, kept in measured.items()}
    if any(left_out.values()):
        counts = " and ".join(
            f"{count:,} of {len(measured[split]):,} {split} rows" for split, count in left_out.items()
        )
        cautions.add(
            "rows-not-measured",
            f"{counts} were left out of every arm, because the tokens that the server showed do not tell which label "
            "is the likeliest. The scores are those of the other rows.",
        )
    unseen = dict(_bounds(stored, measured))
    worst = max(unseen.values(), key=lambda bound: bound.mass)
    if worst.mass > MAY_BE_UNKNOWN:
        cautions.add(
            "labels-not-shown",
            f"{worst.pairs:.0%} of the (row, label) pairs were not among the tokens that the server showed. Their "
            f"probabilities are upper bounds, and {worst.mass:.1%} of the label mass. Ask for more tokens "
            "(teacher.top_logprobs), use words that the teacher would say, or end the template where they follow.",
        )
    shares = {split: LeftOutRows(rows=rows, share=rows / len(measured[split])) for split, rows in left_out.items()}
    return CoverageFacts(unmeasured=shares, unseen=unseen)


def _bounds(stored: Labels, measured: Mapping[str, np.ndarray]) -> Iterable[tuple[str, UnseenLabels]]:
    for (arm, split), labels in stored.items():
        if split != "eval" or labels.seen is None:
            continue
        seen, probs = labels.seen[measured[split]], np.exp(labels.log_probs[measured[split]].astype(np.float64))
        share = float(((probs * ~seen).sum(-1) / probs.sum(-1)).mean())
        yield arm, UnseenLabels(pairs=float((~seen).mean()), mass=share)
