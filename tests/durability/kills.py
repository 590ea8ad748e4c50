"""kill -9 at random moments: by the n-th file operation, or by the seconds computed; then what may be true is looked
at, and the same command goes on, is killed again, and in the end runs through."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.durability import forks, lab
from tests.durability.lab import CHECKPOINT, NEXT, RESUMED, SHARD, STAGES, Lab
from tests.durability.operations import Operation

CHAIN = 4
"""Kills on the way to one end, at most."""
COST = {"collect": 4, "train": 4, "export": 1, "quantize": 2, "bench": 1, "report": 3, "bundle": 2}
"""How often a stage is tried, for what a trial of it costs."""


@dataclass
class Found:
    """done: kills, by stage. ends: trials that ran through. bad: problems by kind."""

    done: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        self.bad[kind] += 1
        self.problems.append(f"{kind}: {what}")

    def facts(self) -> dict[str, Any]:
        return {
            "kills": self.done.total(),
            "lost": self.bad["lost"],
            "partial_accepted": self.bad["partial accepted"],
            "bitwise_equal": self.bad["other bits"] == 0 < self.ends,
            "left_behind": self.bad["left behind"],
            "ends": self.ends,
            "stages": dict(sorted(self.done.items())),
        }


@dataclass
class Trial:
    """One stage of one project from its start to its end, with kills between. forced: it was committed before, and the
    first command that is killed has --force."""

    lab: Lab
    stage: str
    forced: bool
    random: random.Random
    found: Found

    def __post_init__(self) -> None:
        self.run = self.lab.begin(self.stage, "trial", done=self.forced)
        self.before = {one: lab.manifest(self.run, one) for one in STAGES if one != self.stage}
        self.where = f"{self.lab.task} {self.stage}{' --force' * self.forced}"
        self.log = self.lab.scratch / "operations"
        self.kept: dict[Path, int] = {}
        """What was committed → the inode it has to have as long as it is there."""

    def go(self, kills: int) -> None:
        """Up to ``kills``, then to the end."""
        for number in range(kills):
            kill, how = self._moment()
            more = ("--force",) if self.forced and number == 0 else ()
            ended = self._attempt(more, kill)
            if ended.code != -signal.SIGKILL:
                break  # it was faster
            self.found.done[self.stage] += 1
            self._look(f"{self.where}, {how}")
            if self.forced:
                break
        else:
            ended = self._attempt(("--json",), lambda one: None)
        self._end(ended)
        shutil.rmtree(self.run, ignore_errors=True)

    def _moment(self) -> tuple[Callable[[Operation], None], str]:
        """What a victim does before each operation, and in words when it dies."""
        unbroken = self.lab.unbroken[self.stage]
        if self.random.random() < 0.5:
            seconds = self.random.uniform(0, unbroken.cpu_seconds)
            return _after(seconds), f"after {seconds:.2f} s"
        at = self.random.randint(1, len(unbroken.operations))
        cut = self.random.random() if self.random.random() < 0.5 else None
        return _at(at, cut), f"at operation {at}" + (", cut" if cut else "")

    def _attempt(self, more: tuple[str, ...], kill: Callable[[Operation], None]) -> forks.Ended:
        def prepare() -> None:
            lab.record(self.run, self.log, kill)
            getattr(kill, "arm", lambda: None)()

        expected = self._resumable()
        ended = self.lab.run(self.stage, self.run, *more, prepare=prepare)
        log = lab.read(self.log)
        if forks.orphans():
            self.found.add("left behind", self.where)
        self._reused(expected, ended, log)
        if not self.forced:
            for path in lab.committed(self.run, log):
                self.kept[path] = path.stat().st_ino if path.exists() else 0
        return ended

    def _resumable(self) -> dict[str, int]:
        """Run of training → the step of its last checkpoint. There is none once train is committed."""
        found: dict[str, int] = {}
        if lab.manifest(self.run, "train") is not None:
            return found
        for path in self.kept:
            if match := CHECKPOINT.search(str(path)):
                found[match[1]] = max(found.get(match[1], 0), int(match[2]))
        return found

    def _reused(self, steps: dict[str, int], ended: forks.Ended, log: list[Operation]) -> None:
        """No shard was made again, and training went on from the last checkpoint, if it came so far."""
        for path, inode in self.kept.items():
            if SHARD.search(str(path)) and (not path.exists() or path.stat().st_ino != inode):
                self.found.add("lost", f"{self.where}: {path.name} is gone or was made again")
        went_on = {match[1]: int(match[2]) for match in RESUMED.finditer(ended.err)}
        for name, step in steps.items():
            # Before it says where it goes on, it removes what an earlier kill left of older checkpoints.
            saved = any(one.name == "replace" and f"/{name}-" in str(one.path) for one in log)
            reached = name in went_on or ended.code == 0 or saved
            if reached and went_on.get(name, 0) < step:
                self.found.add("lost", f"{self.where}: {name} went on from {went_on.get(name)}, not from {step}")

    def _look(self, when: str) -> None:
        """Right after a kill."""
        for one, manifest in self.before.items():
            if lab.manifest(self.run, one) != manifest:
                self.found.add("lost", f"{when}: the manifest of {one} changed")
        for name in lab.altered(self.run):
            self.found.add("partial accepted", f"{when}: {name} is not as its manifest says")
        for path, inode in self.kept.items():
            if not path.exists() or path.stat().st_ino != inode:
                run, is_checkpoint, _ = path.name.partition("-step-")
                if is_checkpoint and lab.manifest(self.run, "train") is not None:
                    continue
                if not (is_checkpoint and any(path.parent.glob(f"{run}-step-*"))):  # a later one
                    self.found.add("lost", f"{when}: {path.name} is gone")
        states = self.lab.states(self.run)
        for one in STAGES[: STAGES.index(self.stage)]:
            if self.before[one] is not None and states[one] != "fresh":
                self.found.add("lost", f"{when}: {one} is {states[one]}")
        if states.get(self.stage) == "fresh":
            if self.lab.other_bits(self.stage, self.run):
                self.found.add("partial accepted", f"{when}: taken for fresh, and is not what an unbroken run makes")
        elif not self.forced and self.stage in NEXT and self.lab.run(NEXT[self.stage], self.run).code != 4:
            self.found.add("partial accepted", f"{when}: {NEXT[self.stage]} did not refuse")

    def _end(self, ended: forks.Ended) -> None:
        if self.forced and ended.code == -signal.SIGKILL:
            ended = self.lab.run(self.stage, self.run, "--json")
            if ended.code == 0 and not json.loads(ended.out)["fresh"]:
                self.found.add("lost", f"{self.where}: neither what was there before nor its successor")
        self.found.ends += 1
        if ended.code or (others := [*self.lab.other_bits(self.stage, self.run), *lab.altered(self.run)]):
            self.found.add("other bits", f"{self.where}: {ended.err[-2000:] if ended.code else others}")
        if surplus := self.lab.surplus(self.stage, self.run):
            self.found.add("left behind", f"{self.where}: {surplus}")


def _after(seconds: float) -> Callable[[Operation], None]:
    def before(one: Operation) -> None:
        pass

    before.arm = partial(forks.signal_after, seconds)  # type: ignore[attr-defined]
    return before


def _at(number: int, cut: float | None) -> Callable[[Operation], None]:
    """Die before the n-th operation. cut: where that is the fsync of a file in the making, only so much of it was
    written: a kill in the middle of a library's write."""
    count = 0

    def before(one: Operation) -> None:
        nonlocal count
        count += 1
        if count == number:
            if cut is not None and one.name == "fsync" and one.in_making and one.path.is_file():
                os.truncate(one.path, int(cut * one.path.stat().st_size))
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def run(labs: list[Lab], kills: int, seed: int, found: Found, progress: Callable[[], None]) -> None:
    """Trials until there are so many kills, of every stage of every project."""
    number = 0
    turns = [(one, stage) for one in labs for stage in one.stages for _ in range(COST[stage])]
    order = random.Random(seed)
    while found.done.total() < kills:
        if number % len(turns) == 0:
            order.shuffle(turns)
        one, stage = turns[number % len(turns)]
        own = random.Random(f"{seed} {number}")
        Trial(one, stage, own.random() < 0.3, own, found).go(own.randint(1, CHAIN))
        number += 1
        progress()
