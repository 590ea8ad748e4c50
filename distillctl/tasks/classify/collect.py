"""The labelling of views where the response is one of several labels, and the findings about the labels."""

from __future__ import annotations

import numpy as np

from distillctl.data.rows import Dataset
from distillctl.data.views import CEILING, PUBLIC
from distillctl.metrics import comparison, label_checks, scores
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import ArmFacts
from distillctl.soft_labels import label_shards, measured
from distillctl.soft_labels import labels as soft_labels
from distillctl.tasks.base import Findings
from distillctl.tasks.classify.facts import ClassifyCollect
from distillctl.tasks.scored_answers import ScoredAnswers

SHOWN_ROWS = 3
"""The most rows for which a caution shows what the teacher would rather write than a label."""


class ClassifyCollection(ScoredAnswers):
    """The labels' scores, and the findings about them."""

    def findings(self) -> Findings:
        labels = self.stored()
        kept, log_prior = _kept(self.recipe, labels)
        return _findings(self.recipe, self.dataset, labels, kept, log_prior)


# ── findings ─────────────────────────────────────────────────────────────────────────────────────


def _kept(recipe: Recipe, labels: measured.Labels) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return split → the rows that count, bool [N], and the prior, which is estimated from those of train."""
    kept, log_prior = measured.rows(labels), None
    measured.check_coverage(labels, kept)
    if recipe.classify.prior == "batch":
        log_prior = soft_labels.batch_prior(labels[CEILING, "train"].log_probs[kept["train"]])
        calibrated = measured.rows(labels, log_prior)
        kept = {split: rows & calibrated[split] for split, rows in kept.items()}
        measured.check_coverage(labels, kept, log_prior)
    return kept, log_prior


def _findings(
    recipe: Recipe,
    dataset: Dataset,
    labels: measured.Labels,
    kept: dict[str, np.ndarray],
    log_prior: np.ndarray | None,
) -> Findings:
    """Return the arms' scores with intervals, their distance from the ceiling, and the prior."""
    references = [example.reference for example, counts in zip(dataset.eval, kept["eval"], strict=True) if counts]
    comparison.warn_references(references)
    held_out = {arm: part.log_probs[kept[split]] for (arm, split), part in labels.items() if split == "eval"}
    mass = {arm: part.mass[kept[split]] for (arm, split), part in labels.items() if split == "eval"}
    calibrated = {arm: soft_labels.calibrate(log_probs, log_prior) for arm, log_probs in held_out.items()}
    rows = {}
    metric = ""
    for arm, log_probs in calibrated.items():
        rows[arm], metric = scores.row_scores(log_probs, recipe.task.names, references, calibrated[CEILING])
    raw = {
        PUBLIC.get(arm, arm): float(
            scores.row_scores(log_probs, recipe.task.names, references, calibrated[CEILING])[0].mean()
        )
        for arm, log_probs in held_out.items()
    }
    arms, gaps = comparison.compare({PUBLIC.get(arm, arm): values for arm, values in rows.items()}, metric)
    effects = {
        PUBLIC.get(arm, arm): comparison.context_effect(
            calibrated[CEILING].argmax(-1) != log_probs.argmax(-1), scores.kl(calibrated[CEILING], log_probs)
        )
        for arm, log_probs in calibrated.items()
        if arm != CEILING
    }
    comparison.warn(effects, gaps, metric)
    label_checks.check_mass(mass[CEILING], label_shards.likeliest(labels[CEILING, "eval"], SHOWN_ROWS))
    train = soft_labels.calibrate(labels[CEILING, "train"].log_probs[kept["train"]], log_prior)
    label_checks.check_labels(recipe.task.names, train, calibrated[CEILING], references)
    facts = ClassifyCollect(
        labels=recipe.task.names,
        without_prior=None if log_prior is None else raw,
        log_prior=None if log_prior is None else [float(v) for v in log_prior],
        label_mass={arm: float(np.median(masses)) for arm, masses in mass.items()},
        **measured.coverage_facts(labels, kept).given,
    )
    return Findings(ArmFacts(metric=metric, arms=arms, gaps=gaps, context_effects=effects), facts, kept)
