"""A loss of power: what a disk may hold afterwards. Of each folder, the entries as they were when it was last fsynced
and any first part of what changed since; of each file, its bytes only if it was fsynced since they were written."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.durability import lab, operations
from tests.durability.kills import COST
from tests.durability.lab import STAGES, Lab, Trials
from tests.durability.operations import Operation


@dataclass
class Node:
    """A file or a folder. stored: bytes that are on the disk for certain, of a file; entries that are, of a folder."""

    is_folder: bool
    at: Path | None = None
    """Where a file's bytes can be had."""
    stored: int = 0
    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, Node | None]] = field(default_factory=list)
    """Changes of entries since the folder was fsynced, in order."""

    def put(self, name: str, node: Node | None) -> None:
        if node is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = node
        self.pending.append((name, node))


class Disk:
    """Follows a victim's operations below ``root``, whose files were all durable when it began.

    It lives in the victim, and is told `before` and `after` each operation; what is removed gets a second name in
    ``attic``, so that it can still be had.
    """

    def __init__(self, root: Path, attic: Path) -> None:
        self.root, self.attic = root.resolve(), attic
        self.top = self._known(self.root)

    def _known(self, path: Path) -> Node:
        """As it is, durable."""
        if not path.is_dir():
            return Node(False, path, path.stat().st_size)
        entries = {one.name: self._known(one) for one in path.iterdir()}
        return Node(True, None, 0, entries, dict(entries))

    def _find(self, path: Path) -> Node:
        """The node at a path; what nobody saw made was made by a library, and has nothing stored."""
        node = self.top
        for depth, name in enumerate(path.relative_to(self.root).parts):
            if name not in node.entries:
                real = self.root.joinpath(*path.relative_to(self.root).parts[: depth + 1])
                node.put(name, Node(real.is_dir(), real))
            node = node.entries[name]
        return node

    def _keep(self, path: Path) -> None:
        if path.is_file():
            name = self.attic / str(len(os.listdir(self.attic)))
            os.link(path, name)
            self._find(path).at = name

    def before(self, one: Operation) -> None:
        if one.name == "unlink" or (one.name == "replace" and one.path.exists()):
            self._keep(one.path)
        elif one.name == "open" and one.path.exists():
            self._find(one.path)
        if one.source is not None:
            self._find(one.source)

    def after(self, one: Operation) -> None:
        if one.path == self.root:
            folder, node = self.top, self.top
        else:
            folder, node = self._find(one.path.parent), None
        name = one.path.name
        match one.name:
            case "unlink" | "rmdir":
                folder.put(name, None)
            case "replace":
                assert one.source is not None
                moved = self._find(one.source)
                self._find(one.source.parent).put(one.source.name, None)
                folder.put(name, moved)
                self._moved(moved, one.path)
            case "fsync":
                node = node or self._find(one.path)
                if node.is_folder:
                    node.durable, node.pending = dict(node.entries), []
                else:
                    node.stored = one.path.stat().st_size
            case _:  # open, mkdir
                self._find(one.path)

    def _moved(self, node: Node, path: Path) -> None:
        if not node.is_folder:
            node.at = path
        for name, child in node.entries.items():
            self._moved(child, path / name)

    def crash(self, target: Path, draw: random.Random) -> None:
        """Write what the disk may hold, to ``target``."""
        for path in sorted(self.root.rglob("*")):  # what libraries wrote and nobody fsynced yet
            self._find(path)
        self._write(self.top, target, draw)

    def _write(self, node: Node, target: Path, draw: random.Random) -> None:
        if not node.is_folder:
            assert node.at is not None
            whole = node.at.read_bytes()
            cuts = [0, node.stored, draw.randint(0, len(whole)), len(whole)]
            kept = len(whole) if len(whole) == node.stored else draw.choice(cuts)
            target.write_bytes(whole[:kept])
            return
        target.mkdir()
        entries = dict(node.durable)
        for name, child in node.pending[: draw.randint(0, len(node.pending))]:
            if child is None:
                entries.pop(name, None)
            else:
                entries[name] = child
        for name, child in entries.items():
            self._write(child, target / name, draw)


def lose(one: Lab, stage: str, forced: bool, draw: random.Random, found: Trials) -> None:
    """Cut the power before an operation, or when the command has ended, and go on from what a disk may hold."""
    run, attic, after = one.begin(stage, "powered", done=forced), one.scratch / "attic", one.scratch / "after"
    for folder in (attic, after):
        shutil.rmtree(folder, ignore_errors=True)
    attic.mkdir()
    before = {upstream: lab.manifest(run, upstream) for upstream in STAGES[: STAGES.index(stage)]}
    at = draw.randint(1, round(1.2 * len(one.unbroken[stage].operations)))
    cut = _Cut(run, attic, after, at, random.Random(draw.random()))
    ended = one.run(stage, run, *["--force"] * forced, prepare=cut.prepare, finish=cut.finish)
    where = f"{one.task} {stage}{' --force' * forced}, before operation {at}"
    found.done[stage] += 1
    if ended.code not in (0, -signal.SIGKILL):
        found.problems.append(f"{where}: {ended.err[-1500:]}")
    for upstream, manifest in before.items():
        if lab.manifest(after, upstream) != manifest:
            found.problems.append(f"{where}: {upstream} changed")
    state = one.states(after).get(stage)
    if ended.code == 0 and state != "fresh":
        found.problems.append(f"{where}: it was done, and is {state}")
    if state == "fresh" and one.other_bits(stage, after):
        found.problems.append(f"{where}: taken for fresh")
    again = one.run(stage, after)
    if again.code or (others := one.other_bits(stage, after)):
        found.problems.append(f"{where}: afterwards {again.err[-1500:] if again.code else others}")


@dataclass
class _Cut:
    """What a victim does."""

    run: Path
    attic: Path
    after: Path
    at: int
    draw: random.Random
    count: int = 0
    busy: bool = False

    def prepare(self) -> None:
        self.disk = Disk(self.run, self.attic)
        operations.install(self.run, self._quiet(self._before), self._quiet(self.disk.after))

    def finish(self) -> None:
        """The command has ended."""
        self.busy = True
        self.disk.crash(self.after, self.draw)

    def _before(self, one: Operation) -> None:
        self.count += 1
        if self.count == self.at:
            self.disk.crash(self.after, self.draw)
            os.kill(os.getpid(), signal.SIGKILL)
        self.disk.before(one)

    def _quiet(self, seen: operations.Seen) -> operations.Seen:
        """What the disk does itself is none of the victim's operations."""

        def call(one: Operation) -> None:
            if not self.busy:
                self.busy = True
                seen(one)
                self.busy = False

        return call


def run(labs: list[Lab], count: int, seed: int, found: Trials, progress: Callable[[], None]) -> None:
    """So many losses of power over all stages."""
    turns = [(one, stage) for one in labs for stage in one.stages for _ in range(COST[stage])]
    random.Random(seed).shuffle(turns)
    for turn in range(count):
        draw = random.Random(f"{seed} {turn}")
        lose(*turns[turn % len(turns)], draw.random() < 0.3, draw, found)
        progress()
