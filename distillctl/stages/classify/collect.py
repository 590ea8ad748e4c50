"""collect: the teacher's soft labels, under the full context and under every other arm's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from distillctl import console, interrupts, references
from distillctl.data import examples, views
from distillctl.data.examples import Dataset
from distillctl.data.views import CEILING, PUBLIC
from distillctl.metrics import comparison, scores
from distillctl.recipe import Recipe, implementation
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels import shards, store
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.store import SoftLabels
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers.arms import Arm
from distillctl.teachers.huggingface import Teacher
from distillctl.workspace import Outcome, Workspace


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Score every arm shard by shard; shards that are there already are reused."""
    dataset = examples.load(recipe)
    contexts = views.renderers(recipe, dataset.shots)
    source = references.teacher(recipe)
    teacher: Teacher = implementation(recipe.teacher)(recipe.teacher, source)
    answers = [
        teacher.encode_answer(recipe.classify.answer_prefix + words) for words in recipe.classify.labels.values()
    ]
    arms = teacher_arms.arms(recipe, teacher, dataset, contexts, answer_tokens=max(map(len, answers)))
    fingerprint = source.fingerprint()

    folder = workspace.folder("collect")
    workspace.retract("collect")
    spec = recipe.teacher.model_dump(mode="json", exclude={"model"})
    plan = {
        (arm.name, split): shards.plan(
            arm.name,
            split,
            [example.id for example in dataset.splits[split]],
            ids,
            [fingerprint, spec, answers, arm.shared],
            recipe.shard_rows,
        )
        for arm in arms
        for split, ids in arm.ids.items()
    }
    work = _Work(recipe, teacher, answers, folder)
    rows = sum(len(shard.ids) for part in plan.values() for shard in part)
    with console.progress("collect", total=rows) as bar, interrupts.deferred():
        for arm in arms:
            work.score_arm(arm, {split: plan[arm.name, split] for split in arm.ids}, dataset, bar)
    labels = {
        key: store.read_shards(folder, part, [example.id for example in dataset.splits[key[1]]])
        for key, part in plan.items()
    }
    teacher_arms.write_views(folder, dataset, arms)
    shards.drop_others(folder, (shard for part in plan.values() for shard in part))
    facts = _findings(recipe, dataset, labels) | {
        **teacher_arms.facts(recipe, teacher, dataset, arms, fingerprint),
        "scored_rows": work.scored,
        "reused_rows": work.reused,
        "tokens_per_second": round(work.tokens / work.seconds, 1) if work.seconds else None,
    }
    return Outcome(outputs=["views.parquet", "shards"], facts=facts)


class _Work:
    """Scores what is missing, and counts."""

    def __init__(self, recipe: Recipe, teacher: Teacher, answers: list[list[int]], folder: Path) -> None:
        self.recipe, self.teacher, self.answers, self.folder = recipe, teacher, answers, folder
        self.scored = self.reused = self.tokens = 0
        self.seconds = 0.0

    def score_arm(self, arm: Arm, plan: dict[str, list[Shard]], dataset: Dataset, bar: console.Bar) -> None:
        there = {shard.key for part in plan.values() for shard in part if store.present(self.folder, shard)}
        missing = [(split, shard) for split, part in plan.items() for shard in part if shard.key not in there]
        reused = sum(len(shard.ids) for part in plan.values() for shard in part if shard.key in there)
        self.reused += reused
        bar.advance(reused)
        if reused:
            console.note(f"collect: {reused} rows of {arm.name} are there already")
        if not missing:
            return
        context = self.teacher.prepare(arm.every, self.answers, arm.shared)
        skip = arm.shared if context else 0
        for split, shard in missing:
            place = {example.id: row for row, example in enumerate(dataset.splits[split])}
            rows = [arm.ids[split][place[row]][skip:] for row in shard.ids]
            start = time.perf_counter()
            found = self.teacher.score(rows, self.answers, context)
            self.seconds += time.perf_counter() - start
            self.tokens += sum(map(len, rows))
            self.scored += len(rows)
            store.write(self.folder, shard, SoftLabels(shard.ids, found.log_probs, found.mass))
            bar.advance(len(rows), arm=arm.name, tokens=f"{self.tokens / self.seconds:,.0f}/s")
            interrupts.check()


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _findings(recipe: Recipe, dataset: Dataset, labels: dict[tuple[str, str], SoftLabels]) -> dict[str, object]:
    """The arms' scores with intervals, their distance from the ceiling, and the prior."""
    log_prior = None
    if recipe.classify.prior == "batch":
        log_prior = soft_labels.batch_prior(labels[CEILING, "train"].log_probs)
    references = [example.reference for example in dataset.eval]
    if 0 < (without := references.count(None)) < len(references):
        console.warn(
            f"{without} of {len(references)} eval rows have no reference: arms are scored by agreement instead"
        )
    calibrated = {
        arm: soft_labels.calibrate(found.log_probs, log_prior)
        for (arm, split), found in labels.items()
        if split == "eval"
    }
    rows = {}
    metric = ""
    for arm, log_probs in calibrated.items():
        rows[arm], metric = scores.row_scores(log_probs, recipe.task.names, references, calibrated[CEILING])
    raw = {
        PUBLIC.get(arm, arm): float(
            scores.row_scores(found.log_probs, recipe.task.names, references, calibrated[CEILING])[0].mean()
        )
        for (arm, split), found in labels.items()
        if split == "eval"
    }
    arms, gaps = comparison.compare({PUBLIC.get(arm, arm): values for arm, values in rows.items()}, metric, recipe.seed)
    comparison.warn(gaps)
    return {
        "metric": metric,
        "labels": recipe.task.names,
        "without_prior": None if log_prior is None else raw,
        "log_prior": None if log_prior is None else [float(v) for v in log_prior],
        "arms": arms,
        "gaps": gaps,
        "label_mass": {arm: float(np.median(found.mass)) for (arm, split), found in labels.items() if split == "eval"},
    }
