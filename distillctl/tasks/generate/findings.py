"""What the collected answers show: the arms' scores, and what the responses are like."""

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
"""Share of the responses that may be cut off, or empty, before it is said."""
MAY_THINK = 0.05
"""Share of the responses that may be thoughts alone before the recipe is refused."""
OPEN, CLOSE = "<think>", "</think>"
"""What a reasoning model writes around its thoughts; some chat templates write the first one themselves."""


def findings(work: GenerateCollection) -> tuple[ArmFacts, GenerateCollect]:
    """The arms' scores with intervals, their distance from the ceiling, and what the responses are like."""
    task = work.recipe.generate
    wanted = [example.reference for example in work.dataset.eval]
    comparison.warn_references(wanted)
    said = {PUBLIC.get(name, name): _texts(work, name, len(wanted)) for name in work.arms}
    against = (wanted, said["ceiling"], task.format)
    rows = {arm: text_metrics.row_scores(task.score, texts, *against) for arm, texts in said.items()}
    metric = text_metrics.metric_name(task.score, wanted)
    if not names.measures_content(metric):
        cautions.add(
            "content-not-measured",
            "The recipe's only metric is the share in the right format, which says nothing about what the answers say. "
            "Add one that measures content to task.metrics: fields (for JSON), exact, chrf, bleu or rouge_l.",
        )
    arms, gaps = comparison.compare(rows, metric)
    necessity = _necessity(work)
    effects = {
        arm: comparison.context_effect(
            np.array([own.strip() != full.strip() for own, full in zip(texts, said["ceiling"], strict=True)]),
            necessity.mean if necessity and arm == "floor" else None,
        )
        for arm, texts in said.items()
        if arm != "ceiling"
    }
    comparison.warn(effects, gaps, metric)
    return ArmFacts(metric=metric, arms=arms, gaps=gaps, context_effects=effects), GenerateCollect(
        metrics={arm: text_metrics.corpus(task.metrics, texts, *against) for arm, texts in said.items()},
        responses=_responses(work),
        necessity=necessity,
    )


def _check_thoughts(thoughts: Sequence[bool], count: int) -> None:
    """Caution where responses hold a model's thoughts; RecipeError where many are nothing else.

    thoughts: of each such response, whether an answer follows.
    """
    unanswered = len(thoughts) - sum(thoughts)
    switch = (
        "chat_template_kwargs: {enable_thinking: false} in teacher switches them off where the chat template knows it"
    )
    if unanswered > MAY_THINK * count:
        raise RecipeError(
            f"{unanswered:,} of {count:,} responses are the teacher's thoughts ({OPEN} …) without an answer",
            where="teacher",
            next=f"raise task.max_new_tokens, or do without thoughts: {switch}; what was answered is kept",
        )
    if thoughts:
        cautions.add(
            "responses-think",
            f"{len(thoughts):,} of {count:,} responses hold the teacher's thoughts ({OPEN} …), {unanswered:,} of them "
            f"without an answer: the student learns to write thoughts as well. {switch[0].upper()}{switch[1:]}.",
        )


def _texts(work: GenerateCollection, arm: str, count: int) -> list[str]:
    """An arm's answers to the eval rows."""
    texts = [""] * count
    for shard, found in work.read(arm, "eval", work.bare):
        for place, text in zip(shard.places, found.text, strict=True):
            texts[place] = text
    return texts


def _necessity(work: GenerateCollection) -> ContextNeed | None:
    """How much the tokens of the ceiling's answers need the full context; None where that was not worked out."""
    parts = [kl for _, found in work.read(FLOOR, "eval", work.bare) for kl in found.context_kl or ()]
    needed = np.concatenate(parts) if parts else np.empty(0)
    if not len(needed):
        return None
    return ContextNeed(mean=float(needed.mean(dtype=np.float64)), median=float(np.median(needed)))


def _responses(work: GenerateCollection) -> ResponseFacts:
    """Of the ceiling, both splits: how many, how long; of the train rows, on which the student learns, how much of the
    distributions is kept on how many bytes; and of how many eval rows the KL can be measured, on how many bytes."""
    count = cut = empty = 0
    tokens, size = {"train": 0, "eval": 0}, {"train": 0, "eval": 0}
    thoughts: list[bool] = []
    masses, entropy_sum, entropy_count = Tally(), 0.0, 0
    for split in work.arms[CEILING].scored:
        kept = work.kept[split]
        for shard, found in work.read(CEILING, split, kept if split == "train" else work.bare):
            count += len(found.id)
            cut += int(found.cut.sum())
            empty += sum(not text for text in found.text)
            thoughts += [CLOSE in text for text in found.text if text.startswith(OPEN) or CLOSE in text]
            tokens[split] += sum(map(len, found.token_ids))
            size[split] += (work.folder / shard.file).stat().st_size
            if split == "eval":
                continue
            if (captured := kept.captured_mass(found.labels)) is not None:
                masses.add(captured)
            if (entropy := kept.entropy(found.labels)) is not None:
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
