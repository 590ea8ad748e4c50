"""collect: the teacher's answers with what is kept of their distributions, and the answers of every other arm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console, interrupts, references
from distillctl.data import examples, views
from distillctl.data.examples import Dataset
from distillctl.data.responses import check_given, clean, given_ids
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.metrics import comparison
from distillctl.metrics import text as text_metrics
from distillctl.recipe import Given, Greedy, Recipe, Sampled, Sampling, Text, implementation
from distillctl.soft_labels import responses as store
from distillctl.soft_labels import shards
from distillctl.soft_labels.responses import Profile, Response, Responses
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from distillctl.students.vocabulary import vocabulary_digest
from distillctl.teachers import arms as teacher_arms
from distillctl.teachers.arms import Arm
from distillctl.teachers.generation import Generated, generators
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.response_scoring import Use, context_kl
from distillctl.teachers.shared_context import SharedContext
from distillctl.workspace import Outcome, Workspace, digest

MAY_BE_ODD = 0.02
"""Share of the responses that may be cut off, or empty, before it is said."""


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Answer every arm's rows shard by shard; shards that are there already are reused."""
    dataset = examples.load(recipe)
    check_given(recipe, dataset)
    contexts = views.renderers(recipe, dataset.shots)
    source = references.teacher(recipe)
    teacher: Teacher = implementation(recipe.teacher)(recipe.teacher, source)
    stop_ids = teacher.stop_ids(recipe.generate.stop)
    arms = teacher_arms.arms(recipe, teacher, dataset, contexts, answer_tokens=recipe.generate.max_new_tokens)
    given = _given(recipe, teacher, dataset, arms[0], stop_ids, chat=contexts[CEILING].is_chat)
    fingerprint = source.fingerprint()

    folder = workspace.folder("collect")
    workspace.retract("collect")
    plan = _plan(recipe, dataset, arms, given, [fingerprint, stop_ids])
    work = _Work(recipe, teacher, stop_ids, given, dataset, {arm.name: arm for arm in arms}, plan, folder)
    rows = sum(len(shard.ids) for part in plan.values() for shard in part)
    with console.progress("collect", total=rows) as bar, interrupts.deferred():
        for arm in arms:
            work.answer_arm(arm, bar)
    teacher_arms.write_views(folder, dataset, arms)
    shards.drop_others(folder, (shard for part in plan.values() for shard in part))
    facts = _findings(recipe, dataset, work) | {
        **teacher_arms.facts(recipe, teacher, dataset, arms, fingerprint),
        "stop_ids": stop_ids,
        "vocabulary": teacher.vocabulary,
        "teacher_tokenizer": vocabulary_digest(teacher.tokenizer),
        "scored_rows": work.answered,
        "reused_rows": work.reused,
        "tokens_per_second": round(work.tokens / work.seconds, 1) if work.seconds else None,
    }
    return Outcome(outputs=["views.parquet", "shards"], facts=facts)


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────


def _given(
    recipe: Recipe, teacher: Teacher, dataset: Dataset, ceiling: Arm, stop_ids: list[int], *, chat: bool
) -> dict[str, list[int]]:
    """Train row's id → the tokens of the response that the data give it; nothing where the teacher answers."""
    if not isinstance(recipe.generate.responses, Given):
        return {}
    found = {}
    for example, view in zip(dataset.train, ceiling.text["train"], strict=True):
        # After a template the answer is a word that follows; after a chat template it begins a message.
        space = "" if chat or view[-1:].isspace() else " "
        found[example.id] = given_ids(
            teacher.tokenizer,
            space + (example.reference or ""),
            recipe.generate.stop,
            stop_ids,
            recipe.generate.max_new_tokens,
        )
    return found


def _plan(
    recipe: Recipe, dataset: Dataset, arms: Sequence[Arm], given: dict[str, list[int]], teacher: list[Any]
) -> dict[tuple[str, str], list[Shard]]:
    """Arm and split → shards; the ceiling's come first, on whose answers those of the floor depend."""
    task = recipe.generate
    spec = recipe.teacher.model_dump(mode="json", exclude={"model"})
    plan: dict[tuple[str, str], list[Shard]] = {}
    for arm in arms:
        for split, ids in arm.ids.items():
            how = [*teacher, spec, list(task.stop), task.max_new_tokens, arm.shared]
            if arm.name == CEILING:
                said = task.responses if split == "train" else Greedy()
                how += [said.model_dump(mode="json"), task.soft_labels.model_dump(mode="json")]
                if isinstance(said, Sampling) or isinstance(task.soft_labels, Sampled):
                    how.append(recipe.seed)
            if arm.name == FLOOR:
                how += [shard.key for shard in plan[CEILING, split]]
            rows = [example.id for example in dataset.splits[split]]
            # A given response is part of what its row's numbers come from; −1 is no token.
            seen = [
                [*view, -1, *given[row]] if split == "train" and given else view
                for row, view in zip(rows, ids, strict=True)
            ]
            plan[arm.name, split] = shards.plan(arm.name, split, rows, seen, how, recipe.shard_rows)
    return plan


# ── the work ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Work:
    """Answers what is missing, and counts."""

    recipe: Recipe
    teacher: Teacher
    stop_ids: list[int]
    given: dict[str, list[int]]
    dataset: Dataset
    arms: dict[str, Arm]
    plan: dict[tuple[str, str], list[Shard]]
    folder: Path
    answered: int = 0
    reused: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        spec = self.recipe.generate.soft_labels
        self.kept: Profile = implementation(spec)(spec)
        self.bare: Profile = TextLabels(Text())
        self._contexts: dict[str, SharedContext | None] = {}
        self._place = {split: {e.id: row for row, e in enumerate(rows)} for split, rows in self.dataset.splits.items()}

    def answer_arm(self, arm: Arm, bar: console.Bar) -> None:
        mine = [(split, shard) for split in arm.ids for shard in self.plan[arm.name, split]]
        there = {shard.key for _, shard in mine if store.present(self.folder, shard)}
        reused = sum(len(shard.ids) for _, shard in mine if shard.key in there)
        self.reused += reused
        bar.advance(reused)
        if reused:
            console.note(f"collect: {reused} rows of {arm.name} are there already")
        for split, shard in mine:
            if shard.key in there:
                continue
            start = time.perf_counter()
            found = self._said(arm, split, shard)
            self.seconds += time.perf_counter() - start
            self.tokens += sum(len(said.token_ids) for row in found for said in row)
            self.answered += len(shard.ids)
            profile = self.kept if arm.name == CEILING else self.bare
            needed = self._context_kl(shard) if arm.name == FLOOR else [None] * len(shard.ids)
            rows = [
                (row, sample, self._response(said, kl))
                for row, several, kl in zip(shard.ids, found, needed, strict=True)
                for sample, said in enumerate(several)
            ]
            store.write(self.folder, shard, rows, profile)
            bar.advance(len(shard.ids), arm=arm.name, tokens=f"{self.tokens / self.seconds:,.0f}/s")
            interrupts.check()

    def read(self, arm: str, split: str, profile: Profile) -> Responses:
        """What is there of a finished arm."""
        return store.read_shards(self.folder, self.plan[arm, split], list(self._place[split]), profile)

    def _said(self, arm: Arm, split: str, shard: Shard) -> list[list[Generated]]:
        own, context = self._own(arm, split, shard.ids), self._context(arm)
        seeds = [int(digest([self.recipe.seed, split, row])[:16], 16) for row in shard.ids]
        keep = self.kept.keep if arm.name == CEILING and self.kept.fields else None
        if split == "train" and self.given:
            tokens = [self.given[row] for row in shard.ids]
            labels: list[dict[str, Any]] = [{} for _ in tokens]
            if keep is not None:
                self.teacher.score_responses(
                    own, tokens, lambda i, found: labels[i].update(keep(found, generators(seeds[i], 0)[1])), context
                )
            return [
                [Generated(ids, ids[-1] not in self.stop_ids, kept)] for ids, kept in zip(tokens, labels, strict=True)
            ]
        responses = self.recipe.generate.responses
        return self.teacher.answer(
            own,
            context,
            stop=self.stop_ids,
            max_new_tokens=self.recipe.generate.max_new_tokens,
            sampling=responses if split == "train" and isinstance(responses, Sampling) else None,
            seeds=seeds,
            keep=keep,
        )

    def _context_kl(self, shard: Shard) -> list[np.ndarray]:
        """How much each token of the ceiling's answers needs the full context."""
        tokens = [self._ceiling.token_ids[self._place["eval"][row]].tolist() for row in shard.ids]

        def scored(name: str, places: Sequence[int], use: Use) -> None:
            arm = self.arms[name]
            own = self._own(arm, "eval", [shard.ids[place] for place in places])
            self.teacher.score_responses(own, [tokens[place] for place in places], use, self._context(arm))

        return context_kl(
            lambda places, use: scored(CEILING, places, use),
            lambda places, use: scored(FLOOR, places, use),
            tokens,
            self.teacher.vocabulary,
        )

    @cached_property
    def _ceiling(self) -> Responses:
        """Its eval answers, once they are there: the floor's shards all need them."""
        return self.read(CEILING, "eval", self.bare)

    def _context(self, arm: Arm) -> SharedContext | None:
        """What the arm's views begin with, run when it is first needed."""
        if arm.name not in self._contexts:
            self._contexts[arm.name] = self.teacher.prepare_to_answer(
                arm.every, arm.shared, self.recipe.generate.max_new_tokens
            )
        return self._contexts[arm.name]

    def _own(self, arm: Arm, split: str, rows: Sequence[str]) -> list[list[int]]:
        skip = arm.shared if self._context(arm) else 0
        return [arm.ids[split][self._place[split][row]][skip:] for row in rows]

    def _response(self, said: Generated, kl: np.ndarray | None) -> Response:
        text = self.teacher.tokenizer.decode(said.token_ids, skip_special_tokens=True)
        return Response(said.token_ids, clean(text, self.recipe.generate.stop), said.cut, said.labels, kl)


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _findings(recipe: Recipe, dataset: Dataset, work: _Work) -> dict[str, Any]:
    """The arms' scores with intervals, their distance from the ceiling, and what the responses are like."""
    task = recipe.generate
    wanted = [example.reference for example in dataset.eval]
    if 0 < (without := wanted.count(None)) < len(wanted):
        console.warn(f"{without} of {len(wanted)} eval rows have no reference: arms are compared with the ceiling")
    answers = {name: work.read(name, "eval", work.bare) for name in work.arms}
    said = {PUBLIC.get(name, name): found.text for name, found in answers.items()}
    against = (wanted, said["ceiling"], task.format)
    rows = {arm: text_metrics.row_scores(task.metrics[0], texts, *against) for arm, texts in said.items()}
    metric = text_metrics.metric_name(task.metrics[0], wanted)
    arms, gaps = comparison.compare(rows, metric, recipe.seed)
    comparison.warn(gaps)
    needed = np.concatenate(answers[FLOOR].context_kl or [])
    return {
        "metric": metric,
        "metrics": {arm: text_metrics.corpus(task.metrics, texts, *against) for arm, texts in said.items()},
        "arms": arms,
        "gaps": gaps,
        "responses": _responses(work),
        "necessity": {"mean": float(needed.mean()), "median": float(np.median(needed))},
    }


def _responses(work: _Work) -> dict[str, Any]:
    """Of the ceiling, both splits: how many, how long, and how much of the distributions is kept on how many bytes."""
    parts = [work.read(CEILING, split, work.kept) for split in work.arms[CEILING].ids]
    cut = int(sum(part.cut.sum() for part in parts))
    count = sum(len(part.id) for part in parts)
    tokens = sum(len(ids) for part in parts for ids in part.token_ids)
    if cut > MAY_BE_ODD * count:
        console.warn(
            f"{cut} of {count} responses were cut off after {work.recipe.generate.max_new_tokens} tokens: raise "
            "task.max_new_tokens, or name in task.stop what ends an answer"
        )
    if (empty := sum(not said for part in parts for said in part.text)) > MAY_BE_ODD * count:
        console.warn(f"{empty} of {count} responses are empty: look at the end of the template and at task.stop")
    masses = [work.kept.captured_mass(part.labels) for part in parts]
    mass = np.concatenate([found for found in masses if found is not None] or [np.empty(0)])
    entropies = [work.kept.entropy(part.labels) for part in parts]
    entropy = np.concatenate([found for found in entropies if found is not None] or [np.empty(0)])
    files = [work.folder / shard.file for (arm, _), part in work.plan.items() if arm == CEILING for shard in part]
    return {
        "count": count,
        "cut": cut,
        "tokens": tokens / count,
        "captured_mass": {"median": float(np.median(mass)), "p5": float(np.percentile(mass, 5))} if len(mass) else None,
        "entropy": float(entropy.mean()) if len(entropy) else None,
        "bytes_per_token": sum(path.stat().st_size for path in files) / tokens,
    }
