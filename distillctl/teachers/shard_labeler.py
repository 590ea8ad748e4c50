"""Label the missing shards of a plan with a worker pool, and commit them one by one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distillctl import console, interrupts
from distillctl.run_dir.facts import LabellingFacts
from distillctl.soft_labels.shards import Shard
from distillctl.teachers.worker_pool import ShardTask, WorkerPool
from distillctl.terminal.progress import Progress


@dataclass
class ShardLabeler:
    """Label and commit shards, and count rows, tokens and seconds.

    present: tells whether a shard is stored, whole. commit: writes a shard and returns how many tokens it took.
    """

    pool: WorkerPool
    present: Callable[[Shard], bool]
    commit: Callable[[Shard, Any], int]
    bar: Progress
    scored: int = 0
    reused: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def label(self, plan: Sequence[Shard], task: Callable[[Shard], ShardTask]) -> None:
        """Label the missing shards of ``plan`` and commit each as it comes. task: makes a shard's task when a worker is
        free."""
        missing = [shard for shard in plan if not self.present(shard)]
        self._reuse(plan, missing)
        start = time.perf_counter()
        with interrupts.deferred():
            for shard, labels in self.pool.map((shard, task(shard)) for shard in missing):
                self.tokens += self.commit(shard, labels)
                self.scored += len(shard.ids)
                speed = self.tokens / (self.seconds + time.perf_counter() - start)
                self.bar.advance(len(shard.ids), arm=shard.arm, tokens=f"{speed:,.0f}/s")
                interrupts.raise_if_pending()
        self.seconds += time.perf_counter() - start

    def _reuse(self, plan: Sequence[Shard], missing: Sequence[Shard]) -> None:
        rows = Counter({shard.arm: 0 for shard in plan})
        for part, sign in ((plan, 1), (missing, -1)):
            for shard in part:
                rows[shard.arm] += sign * len(shard.ids)
        for arm, count in rows.items():
            if count:
                console.note(f"collect: {count} rows of {arm} are already there")
        self.reused += rows.total()
        self.bar.skip(rows.total())

    @property
    def facts(self) -> LabellingFacts:
        """Return what collect's manifest records about the work."""
        return LabellingFacts(
            scored_rows=self.scored,
            reused_rows=self.reused,
            tokens_per_second=round(self.tokens / self.seconds, 1) if self.scored else None,
        )
