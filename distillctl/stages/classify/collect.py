"""collect: the teacher's soft labels, under the full context and under every other arm's."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from distillctl import console
from distillctl.data import examples, views
from distillctl.data.rows import Dataset
from distillctl.data.views import CEILING, PUBLIC
from distillctl.engines.worker_pool import Asked, Task
from distillctl.metrics import comparison, label_checks, scores
from distillctl.models import model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.soft_labels import label_shards, measured, shards
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels.label_shards import SoftLabels
from distillctl.soft_labels.shard_labeler import Committing
from distillctl.soft_labels.shards import Shard
from distillctl.students import reading as student_lengths
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers import worker_pools


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Have every arm scored shard by shard; shards that are there already are reused."""
    folder = workspace.folder("collect")
    dataset = examples.load(recipe, folder)
    contexts = views.renderers(recipe, dataset.shots)
    source = model_source.teacher(recipe)
    with worker_pools.crew(recipe, source, folder) as crew:
        words = tuple(recipe.classify.labels.values())
        asked = Asked(recipe.classify.answer_prefix, words)
        arms, dataset = teacher_arms.arms(
            crew.reader,
            dataset,
            contexts,
            lambda *row: asked,
            folder,
            student=student_lengths.measure(recipe),
            cut=recipe.contexts.truncate == "input",
        )
        fingerprint = source.fingerprint()
        workspace.invalidate("collect")
        spec = recipe.teacher.identity
        plan = {
            (arm.name, split): shards.plan(
                arm.name,
                split,
                dataset.splits[split].ids,
                arm.lengths(split),
                partial(arm.seen, split),
                [fingerprint, spec, words, asdict(arm.place), arm.shared],
                recipe.shard_rows,
            )
            for arm in arms
            for split in arm.scored
        }
        every = [shard for part in plan.values() for shard in part]
        named = {arm.name: arm for arm in arms}

        def task(shard: Shard) -> Task:
            seen = named[shard.arm].views(shard.split, shard.places)
            return Task(shard.arm, shard.split, shard.ids, seen)

        def commit(shard: Shard, found: Any) -> int:
            labels = SoftLabels(
                shard.ids, found.log_probs, found.mass, found.seen, found.next_tokens, found.next_log_probs
            )
            label_shards.write(folder, shard, labels)
            return int(found.tokens)

        with console.progress("collect", total=sum(len(shard.ids) for shard in every)) as bar:
            work = Committing(crew, lambda shard: label_shards.present(folder, shard), commit, bar)
            work.label(every, task)
        told = teacher_arms.facts(recipe, crew.reader, dataset, arms, fingerprint)
    shards.drop_others(folder, every)
    found = {key: label_shards.read_shards(folder, part) for key, part in plan.items()}
    kept, log_prior = _kept(recipe, found)
    teacher_arms.write_views(folder, dataset, arms, kept)
    told["counts"] = told["counts"] | {split: int(rows.sum()) for split, rows in kept.items()}
    facts = _findings(recipe, dataset, found, kept, log_prior) | measured.facts(found, kept)
    return StageOutput(outputs=["views.parquet", "shards"], facts=facts | told | work.facts)


SHOWN_ROWS = 3
"""Of which a caution shows what the teacher would rather write than a label."""


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _kept(recipe: Recipe, found: measured.Labels) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Split → the rows that count, bool [N]; and the prior, which is estimated from those of train."""
    kept, log_prior = measured.rows(found), None
    measured.check(found, kept)
    if recipe.classify.prior == "batch":
        log_prior = soft_labels.batch_prior(found[CEILING, "train"].log_probs[kept["train"]])
        calibrated = measured.rows(found, log_prior)
        kept = {split: rows & calibrated[split] for split, rows in kept.items()}
        measured.check(found, kept, log_prior)
    return kept, log_prior


def _findings(
    recipe: Recipe,
    dataset: Dataset,
    labels: measured.Labels,
    kept: dict[str, np.ndarray],
    log_prior: np.ndarray | None,
) -> dict[str, object]:
    """The arms' scores with intervals, their distance from the ceiling, and the prior."""
    references = [example.reference for example, counts in zip(dataset.eval, kept["eval"], strict=True) if counts]
    comparison.warn_references(references)
    held_out = {arm: found.log_probs[kept[split]] for (arm, split), found in labels.items() if split == "eval"}
    mass = {arm: found.mass[kept[split]] for (arm, split), found in labels.items() if split == "eval"}
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
    return {
        "metric": metric,
        "labels": recipe.task.names,
        "without_prior": None if log_prior is None else raw,
        "log_prior": None if log_prior is None else [float(v) for v in log_prior],
        "arms": arms,
        "gaps": gaps,
        "context_effects": effects,
        "label_mass": {arm: float(np.median(masses)) for arm, masses in mass.items()},
    }
