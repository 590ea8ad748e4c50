"""collect: the teacher's answers with what is kept of their distributions, and the answers of every other arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import cautions, console
from distillctl.data import examples, field_references, views
from distillctl.data.disk_rows import Spool
from distillctl.data.responses import Response, check_given, ended
from distillctl.data.rows import Dataset, Example
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.engines.worker_pool import Asked, Compared, Crew, Task
from distillctl.errors import RecipeError
from distillctl.metrics import comparison, names
from distillctl.metrics import text as text_metrics
from distillctl.metrics.statistics import Tally
from distillctl.models import model_source
from distillctl.recipe import (
    Given,
    Greedy,
    HuggingFaceTeacher,
    Measured,
    Recipe,
    Sampled,
    Sampling,
    Text,
    implementation,
)
from distillctl.run_dir.workspace import StageOutput, Workspace, digest
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels import shards
from distillctl.soft_labels.eval_rows import EvalLabels, rows_measured
from distillctl.soft_labels.response_shards import Profile, Responses
from distillctl.soft_labels.shard_labeler import Committing
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from distillctl.students import reading as student_lengths
from distillctl.students.vocabulary import vocabulary_digest
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers import worker_pools
from distillctl.teachers.arms import Arm

MAY_BE_ODD = 0.02
"""Share of the responses that may be cut off, or empty, before it is said."""
MAY_THINK = 0.05
"""Share of the responses that may be thoughts alone before the recipe is refused."""
OPEN, CLOSE = "<think>", "</think>"
"""What a reasoning model writes around its thoughts; some chat templates write the first one themselves."""


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Have every arm's rows answered shard by shard; shards that are there already are reused."""
    folder = workspace.folder("collect")
    dataset = examples.load(recipe, folder)
    check_given(recipe, dataset)
    contexts = views.renderers(recipe, dataset.shots)
    source = model_source.teacher(recipe)
    with worker_pools.crew(recipe, source, folder) as crew:
        stop_ids = crew.reader.stop_ids(recipe.generate.stop)
        arms, dataset = teacher_arms.arms(
            crew.reader,
            dataset,
            contexts,
            partial(_asked, recipe),
            folder,
            student=student_lengths.measure(recipe),
            cut=recipe.contexts.truncate == "input",
        )
        given = _given(recipe, crew, arms[0], len(dataset.train), stop_ids, folder)
        fingerprint = source.fingerprint()
        workspace.invalidate("collect")
        work = _Work(recipe, dataset, {arm.name: arm for arm in arms}, given, folder, crew.reader.vocabulary)
        plan = work.plan([fingerprint, stop_ids])
        if work.measured is not None:
            console.note(
                f"collect: KL will be measured on the first {work.measured} of {len(dataset.eval)} eval rows; for all "
                f"of them whole distributions of up to {recipe.generate.max_new_tokens} tokens would take too much room"
            )
        with console.progress("collect", total=sum(len(shard.ids) for part in plan.values() for shard in part)) as bar:
            loop = Committing(crew, lambda shard: store.present(folder, shard), work.commit, bar)
            for ceiling in (True, False):  # the floor's tasks are made from the ceiling's answers
                todo = [shard for (arm, _), part in plan.items() if (arm == CEILING) is ceiling for shard in part]
                loop.label(todo, work.task)
        facts = {
            **teacher_arms.facts(recipe, crew.reader, dataset, arms, fingerprint),
            "stop_ids": stop_ids,
            "vocabulary": crew.reader.vocabulary,
            "teacher_tokenizer": crew.reader.tokenizer and vocabulary_digest(crew.reader.tokenizer),
            **loop.facts,
        }
    teacher_arms.write_views(folder, dataset, arms)
    shards.drop_others(folder, (shard for part in plan.values() for shard in part))
    outputs = ["views.parquet", "shards"]
    if recipe.generate.fields:
        facts["field_references"] = field_references.write(folder, recipe.generate, dataset.eval)
        outputs.append(field_references.FILE)
    return StageOutput(outputs=outputs, facts=_findings(recipe, dataset, work) | facts)


def _asked(recipe: Recipe, arm: str, split: str, example: Example) -> Asked:
    """Of every view an answer; of the ceiling's train rows, where the data give them, how likely that answer is."""
    task = recipe.generate
    given = isinstance(task.responses, Given) and arm == CEILING and split == "train"
    words = ((example.reference or "") + "".join(task.stop[:1]),) if given else ()
    return Asked(words=words, room=task.max_new_tokens)


def _given(recipe: Recipe, crew: Crew, ceiling: Arm, rows: int, stop_ids: list[int], folder: Path) -> Spool | None:
    """The tokens of the responses that the data give the train rows; None where the teacher answers."""
    task, found = recipe.generate, Spool(folder, np.int32)
    if not isinstance(task.responses, Given):
        return None
    for row in range(rows):
        [ids] = ceiling.answers("train", row)
        found.append(ended(ids, stop_ids, crew.reader.tokenizer.eos_token_id, task.max_new_tokens))
    return found


# ── the work ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Work:
    """What each shard asks, and how its answer is kept."""

    recipe: Recipe
    dataset: Dataset
    arms: dict[str, Arm]
    given: Spool | None
    folder: Path
    vocabulary: int | None
    """Of the teacher, None where a server does not show it."""
    shards: dict[tuple[str, str], list[Shard]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        served = not isinstance(self.recipe.teacher, HuggingFaceTeacher)
        self.specs = {split: self.recipe.generate.kept(split, served=served) for split in ("train", "eval")}
        self.kept: dict[str, Profile] = {split: implementation(spec)(spec) for split, spec in self.specs.items()}
        self.bare: Profile = TextLabels(Text())

    @cached_property
    def measured(self) -> int | None:
        """Of how many eval rows, from the first, whole distributions are kept; None where of none or of all."""
        spec, rows = self.specs["eval"], len(self.dataset.eval)
        if not isinstance(spec, Measured) or self.vocabulary is None:
            return None
        found = rows_measured(spec, self.vocabulary, self.recipe.generate.max_new_tokens, rows)
        return found if found < rows else None

    def plan(self, teacher: list[Any]) -> dict[tuple[str, str], list[Shard]]:
        """Arm and split → shards; the ceiling's come first, on whose answers those of the floor depend.

        teacher: what its numbers depend on.
        """
        task, spec = self.recipe.generate, self.recipe.teacher.identity
        for arm in self.arms.values():
            for split in arm.scored:
                how = [*teacher, spec, list(task.stop), task.max_new_tokens, arm.shared]
                if arm.name == CEILING:
                    said = task.responses if split == "train" else Greedy()
                    kept = self.specs[split]
                    how += [said.model_dump(mode="json"), kept.model_dump(mode="json")]
                    how.append([column.name for column in self.kept[split].fields])
                    if isinstance(said, Sampling) or isinstance(kept, Sampled):
                        how.append(self.recipe.seed)
                    if split == "eval" and self.measured is not None:
                        how.append(self.measured)
                if arm.name == FLOOR:
                    how += [shard.key for shard in self.shards[CEILING, split]]
                rows = self.dataset.splits[split].ids
                self.shards[arm.name, split] = shards.plan(
                    arm.name, split, rows, arm.lengths(split), partial(arm.seen, split), how, self.recipe.shard_rows
                )
        return self.shards

    def task(self, shard: Shard) -> Task:
        """What a shard asks; one of the floor's also asks what the ceiling's answers needed the full context for."""
        compared = None
        if shard.arm == FLOOR and isinstance(self.recipe.teacher, HuggingFaceTeacher):  # a server does not score texts
            said, order = self._ceiling
            tokens = [said[order[place]].tolist() for place in shard.places]
            compared = Compared(tokens, self.arms[CEILING].views("eval", shard.places))
        given = self.given if shard.split == "train" else None
        return Task(
            shard.arm,
            shard.split,
            shard.ids,
            self.arms[shard.arm].views(shard.split, shard.places),
            [int(digest([self.recipe.seed, shard.split, row])[:16], 16) for row in shard.ids],
            None if given is None else [given[place].tolist() for place in shard.places],
            compared,
        )

    def commit(self, shard: Shard, found: list[tuple[str, int, Response]]) -> int:
        """Write it; the tokens of its responses."""
        profile = self.kept[shard.split] if shard.arm == CEILING else self.bare
        if isinstance(profile, EvalLabels) and self.measured is not None:
            places = dict(zip(shard.ids, shard.places.tolist(), strict=True))
            found = [
                (row, sample, said)
                if places[row] < self.measured
                else (row, sample, replace(said, labels=profile.nothing(len(said.token_ids))))
                for row, sample, said in found
            ]
        store.write(self.folder, shard, found, profile)
        return sum(len(response.token_ids) for _, _, response in found)

    @cached_property
    def _ceiling(self) -> tuple[Spool, np.ndarray]:
        """Its answers to the eval rows, and where each row's stands: the floor's tasks are made from them."""
        said, order = Spool(self.folder, np.int32), np.empty(len(self.dataset.eval), np.int32)
        for shard, found in self.read(CEILING, "eval", self.bare):
            order[shard.places] = len(said) + np.arange(len(shard.places))
            for ids in found.token_ids:
                said.append(ids)
        return said, order

    def read(self, arm: str, split: str, profile: Profile) -> Iterator[tuple[Shard, Responses]]:
        """What is there of a finished arm, a shard at a time."""
        return store.read_each(self.folder, self.shards[arm, split], profile)


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _findings(recipe: Recipe, dataset: Dataset, work: _Work) -> dict[str, Any]:
    """The arms' scores with intervals, their distance from the ceiling, and what the responses are like."""
    task = recipe.generate
    wanted = [example.reference for example in dataset.eval]
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
            necessity["mean"] if necessity and arm == "floor" else None,
        )
        for arm, texts in said.items()
        if arm != "ceiling"
    }
    comparison.warn(effects, gaps, metric)
    return {
        "metric": metric,
        "metrics": {arm: text_metrics.corpus(task.metrics, texts, *against) for arm, texts in said.items()},
        "arms": arms,
        "gaps": gaps,
        "context_effects": effects,
        "responses": _responses(work),
        "necessity": necessity,
    }


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


def _texts(work: _Work, arm: str, count: int) -> list[str]:
    """An arm's answers to the eval rows."""
    texts = [""] * count
    for shard, found in work.read(arm, "eval", work.bare):
        for place, text in zip(shard.places, found.text, strict=True):
            texts[place] = text
    return texts


def _necessity(work: _Work) -> dict[str, float] | None:
    """How much the tokens of the ceiling's answers need the full context; None where that was not worked out."""
    parts = [kl for _, found in work.read(FLOOR, "eval", work.bare) for kl in found.context_kl or ()]
    needed = np.concatenate(parts) if parts else np.empty(0)
    return {"mean": float(needed.mean(dtype=np.float64)), "median": float(np.median(needed))} if len(needed) else None


def _responses(work: _Work) -> dict[str, Any]:
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
            if (mass := kept.captured_mass(found.labels)) is not None:
                masses.add(mass)
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
    return {
        "count": count,
        "cut": cut,
        "tokens": sum(tokens.values()) / count if any(tokens.values()) else None,
        "captured_mass": {"median": masses.percentile(50), "p5": masses.percentile(5)} if masses.count else None,
        "entropy": entropy_sum / entropy_count if entropy_count else None,
        "bytes_per_token": size["train"] / tokens["train"] if tokens["train"] else None,
        "eval_bytes": size["eval"] if isinstance(work.specs["eval"], Measured) else None,
        "eval_rows_measured": work.measured,
    }
