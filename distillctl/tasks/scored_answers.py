"""What collect does for each kind of task whose teacher scores the answers that the recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from distillctl.data.rows import Dataset
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import Facts
from distillctl.soft_labels import label_shards, shards
from distillctl.soft_labels.label_shards import SoftLabels
from distillctl.soft_labels.shards import Shard
from distillctl.teachers.arms import Arm
from distillctl.teachers.worker_pool import ShardTask


class ScoredAnswers:
    """A `tasks.base.Collection` without its findings: every arm scores every answer, in one round."""

    def __init__(self, recipe: Recipe, folder: Path, dataset: Dataset, arms: Sequence[Arm], fingerprint: str) -> None:
        self.recipe, self.folder, self.dataset = recipe, folder, dataset
        self._arms = {arm.name: arm for arm in arms}
        spec, words = recipe.teacher.identity, tuple(recipe.task.answers.values())
        self.plan = {
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

    def stored(self) -> dict[tuple[str, str], SoftLabels]:
        """Return (arm, split) → the scores of all rows, once they are stored."""
        return {key: label_shards.read_shards(self.folder, part) for key, part in self.plan.items()}

    @property
    def rounds(self) -> list[list[Shard]]:
        """Return all shards as one round."""
        return [[shard for part in self.plan.values() for shard in part]]

    def present(self, shard: Shard) -> bool:
        """Tell whether the shard is stored already, whole."""
        return label_shards.present(self.folder, shard)

    def request(self, shard: Shard) -> ShardTask:
        """Return the views of the shard's rows."""
        views = self._arms[shard.arm].views(shard.split, shard.places)
        return ShardTask(shard.arm, shard.split, shard.ids, views)

    def commit(self, shard: Shard, labels: Any) -> int:
        """Store a worker's answer: log-probabilities [N, K], and the tokens it would rather write."""
        stored = SoftLabels(
            shard.ids, labels.log_probs, labels.mass, labels.seen, labels.next_tokens, labels.next_log_probs
        )
        label_shards.write(self.folder, shard, stored)
        return int(labels.tokens)

    def teacher_facts(self) -> Facts:
        """Return no facts: those of every kind are enough."""
        return Facts()
