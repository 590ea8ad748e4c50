"""The findings about the collected answers: the arms' scores, and figures of the responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distillctl import cautions
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.errors import RecipeError
from distillctl.metrics import comparison, names
from distillctl.metrics import text as text_metrics
from distillctl.metrics.statistics import Tally
from distillctl.recipe import EvalSoftLabels
from distillctl.run_dir.facts import ArmFacts
from distillctl.tasks.generate.facts import CapturedMass, ContextNeed, GenerateCollect, ResponseFacts

if TYPE_CHECKING:
    from distillctl.tasks.generate.collect import GenerateCollection

MAY_BE_ODD = 0.02
"""Share of the responses that may be cut off, or empty, without a caution."""
MAY_THINK = 0.05
"""Share of the responses that may be thoughts alone before the recipe is refused."""
OPEN, CLOSE = "<think>", "</think>"
"""The marks that a reasoning model writes around its thoughts; some chat templates write the first one themselves."""


def findings(work: GenerateCollection) -> tuple[ArmFacts, GenerateCollect]:
    """Return the arms' scores with intervals and their distance from the ceiling, and figures of the responses."""
    task = work.recipe.generate
    references = [example.reference for example in work.dataset.eval]
    comparison.warn_references(references)
    answers_of = {PUBLIC.get(name, name): _texts(work, name, len(references)) for name in work.arms}
    against = (references, answers_of["ceiling"], task.format)
    rows = {arm: text_metrics.row_scores(task.score, texts, *against) for arm, texts in answers_of.items()}
    metric = text_metrics.metric_name(task.score, references)
    if not names.measures_content(metric):
        cautions.add(
            "content-not-measured",
            "The recipe's only metric is the share in the right format, which says nothing about what the answers say. "
            "Add one that measures content to task.metrics: fields (for JSON), exact, chrf, bleu or rouge_l.",
        )
    arms, gaps = comparison.compare(rows, metric)
    need = _context_need(work)
    effects = {
        arm: comparison.context_effect(
            np.array([a.strip() != b.strip() for a, b in zip(texts, answers_of["ceiling"], strict=True)]),
            need.mean if need and arm == "floor" else None,
        )
        for arm, texts in answers_of.items()
        if arm != "ceiling"
    }
    comparison.warn(effects, gaps, metric)
    return ArmFacts(metric=metric, arms=arms, gaps=gaps, context_effects=effects), GenerateCollect(
        metrics={arm: text_metrics.corpus(task.metrics, texts, *against) for arm, texts in answers_of.items()},
        responses=_responses(work),
        necessity=need,
    )


def _check_thoughts(thoughts: Sequence[bool], count: int) -> None:
    """Caution where responses hold a model's thoughts. Raise RecipeError where many hold nothing else.

    thoughts: for each such response, whether an answer follows.
    """
    unanswered = len(thoughts) - sum(thoughts)
    switch = (
        "chat_template_kwargs: {enable_thinking: false} in teacher switches them off where the chat template knows it"
    )
    if unanswered > MAY_THINK * count:
        raise RecipeError(
            f"{unanswered:,} of {count:,} responses are the teacher's thoughts ({OPEN} …) without an answer",
            where="teacher",
            next=f"raise task.max_new_tokens, or do without thoughts: {switch}; the answers so far are kept",
        )
    if thoughts:
        cautions.add(
            "responses-think",
            f"{len(thoughts):,} of {count:,} responses hold the teacher's thoughts ({OPEN} …), {unanswered:,} of them "
            f"without an answer: the student learns to write thoughts as well. {switch[0].upper()}{switch[1:]}.",
        )


def _texts(work: GenerateCollection, arm: str, count: int) -> list[str]:
    """Return an arm's answers to the eval rows."""
    texts = [""] * count
    for shard, responses in work.read(arm, "eval", work.bare):
        for place, text in zip(shard.places, responses.text, strict=True):
            texts[place] = text
    return texts


def _context_need(work: GenerateCollection) -> ContextNeed | None:
    """Return how much the tokens of the ceiling's answers need the full context; None where it is not known."""
    parts = [kl for _, responses in work.read(FLOOR, "eval", work.bare) for kl in responses.context_kl or ()]
    needed = np.concatenate(parts) if parts else np.empty(0)
    if not len(needed):
        return None
    return ContextNeed(mean=float(needed.mean(dtype=np.float64)), median=float(np.median(needed)))


def _responses(work: GenerateCollection) -> ResponseFacts:
    """Return figures of the ceiling's responses.

    Both splits: their number and length. Train rows, from which the student learns: the share of the distributions that
    is kept, and its bytes. Eval rows: the number on which the KL can be measured, and their bytes.
    """
    count = cut = empty = 0
    tokens, size = {"train": 0, "eval": 0}, {"train": 0, "eval": 0}
    thoughts: list[bool] = []
    masses, entropy_sum, entropy_count = Tally(), 0.0, 0
    for split in ("train", "eval"):
        kept = work.kept[split]
        for shard, responses in work.read(CEILING, split, kept if split == "train" else work.bare):
            count += len(responses.id)
            cut += int(responses.cut.sum())
            empty += sum(not text for text in responses.text)
            thoughts += [CLOSE in text for text in responses.text if text.startswith(OPEN) or CLOSE in text]
            tokens[split] += sum(map(len, responses.token_ids))
            size[split] += (work.folder / shard.file).stat().st_size
            if split == "eval":
                continue
            if (captured := kept.captured_mass(responses.labels)) is not None:
                masses.add(captured)
            if (entropy := kept.entropy(responses.labels)) is not None:
                entropy_sum += float(entropy.sum(dtype=np.float64))
                entropy_count += len(entropy)
    if cut > MAY_BE_ODD * count:
        cautions.add(
            "responses-cut",
            f"{cut} of {count} responses were cut off after {work.recipe.generate.max_new_tokens} tokens: raise "
            "task.max_new_tokens, or name in task.stop what ends an answer",
        )
    _check_thoughts(thoughts, count)
    if empty > MAY_BE_ODD * count:
        cautions.add(
            "responses-empty",
            f"{empty} of {count} responses are empty: look at the end of the template and at task.stop",
        )
    mass = CapturedMass(median=masses.percentile(50), p5=masses.percentile(5)) if masses.count else None
    return ResponseFacts(
        count=count,
        cut=cut,
        tokens=sum(tokens.values()) / count if any(tokens.values()) else None,
        captured_mass=mass,
        entropy=entropy_sum / entropy_count if entropy_count else None,
        bytes_per_token=size["train"] / tokens["train"] if tokens["train"] else None,
        eval_bytes=size["eval"] if isinstance(work.specs["eval"], EvalSoftLabels) else None,
        eval_rows_measured=work.measured,
    )
