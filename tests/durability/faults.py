"""Disks that fail: an operation that is refused, once or from then on; a file system that fills up in the middle of a
library's write. Each time exit 5, one clear error, nothing half accepted; the same command ends well afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.durability import forks, lab, operations
from tests.durability.lab import STAGES, Lab, Trials
from tests.durability.operations import Operation

ERRORS = {
    "open": errno.ENOSPC,
    "tmpfile": errno.ENOSPC,
    "mkdir": errno.ENOSPC,
    "replace": errno.EIO,
    "fsync": errno.EIO,
}
DISPENSABLE = ("unlink", "rmdir", "tmpfile", "mkdir again")
"""What cannot be removed may be left where it is; a folder that is there need not be made; tempfile takes a name where
it gets no file without one."""
DISK = 64 << 20


@dataclass
class Found(Trials):
    kind: str = "faults"
    survived: int = 0
    """Commands that did without what was refused."""

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"survived": self.survived}


def refused(one: Lab, stage: str, number: int, found: Found, *, forever: bool) -> None:
    """Refuse the ``number``-th operation of a stage; ``forever``: and all writing behind it."""
    run, told = one.begin(stage, "faulty", done=False), one.scratch / "refused"
    ended = one.run(stage, run, prepare=partial(_refuse, run, number, forever, told))
    operation = told.read_text()
    where = f"{one.task} {stage}: operation {number} ({operation}){', and all after it' * forever}"
    _judge(one, stage, run, ended, found, where, operation.startswith(DISPENSABLE))


def full(one: Lab, stage: str, share: float, disk: Path, found: Found) -> None:
    """Run a stage on a file system with room for ``share`` of what it writes."""
    for old in disk.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(one.begin(stage, "faulty", done=False), disk / "run")
    need = sum(p.stat().st_size for p in (one.reference / stage).rglob("*") if p.is_file())
    room = os.statvfs(disk)
    with (disk / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(1, room.f_bavail * room.f_bsize - int(share * need)))
    ended = one.run(stage, disk / "run")
    (disk / "ballast").unlink()
    _judge(one, stage, disk / "run", ended, found, f"{one.task} {stage}: room for {share:.0%}", may_survive=share > 0.9)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own that can be filled; None where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _refuse(run: Path, number: int, forever: bool, told: Path) -> None:
    """In the victim. told: where it is written which operation that was."""
    count = 0

    def before(one: Operation) -> None:
        nonlocal count
        count += 1
        if count == number:
            told.write_text(f"{one.name} {one.path.relative_to(run.resolve())}")
        if count == number or (forever and count > number and one.name in ERRORS):
            code = ERRORS.get(one.name, errno.EIO)
            raise OSError(code, os.strerror(code), str(one.path))

    operations.install(run, before)


def _judge(one: Lab, stage: str, run: Path, ended: forks.Ended, found: Found, where: str, may_survive: bool) -> None:
    found.done[stage] += 1
    if ended.code == 0 and may_survive:
        found.survived += 1
    elif ended.code != 5 or "Traceback" in ended.err or len(re.findall("^error: ", ended.err, re.MULTILINE)) != 1:
        found.problems.append(f"{where}: exit {ended.code}: {ended.err[-1500:]}")
    found.problems += [f"{where}: {name} is not as its manifest says" for name in lab.altered(run)]
    states = one.states(run)
    for upstream in STAGES[: STAGES.index(stage)]:
        if states[upstream] not in ("fresh", "missing"):
            found.problems.append(f"{where}: {upstream} is {states[upstream]}")
    if states.get(stage) == "fresh" and one.other_bits(stage, run):
        found.problems.append(f"{where}: taken for fresh")
    again = one.run(stage, run)
    if again.code or (others := one.other_bits(stage, run)):
        found.problems.append(f"{where}: afterwards {again.err[-1500:] if again.code else others}")
    shutil.rmtree(run, ignore_errors=True)


def run(labs: list[Lab], count: int, seed: int, found: Found, progress: Callable[[], None]) -> None:
    """A seeded sample of ``count`` sites: three of four are operations that are refused, the others disks that fill up.
    Every operation of every stage has its turn before any comes again."""
    draw = random.Random(seed)
    sites = [
        (one, stage, number)
        for one in labs
        for stage in one.stages
        for number in range(1, len(one.unbroken[stage].operations) + 1)
    ]
    draw.shuffle(sites)
    places = [(one, stage) for one in labs for stage in one.stages]
    with small_disk(labs[0].scratch / "disk") as disk:
        for turn in range(count):
            if disk is not None and turn % 4 == 3:
                full(*draw.choice(places), draw.random(), disk, found)
            else:
                refused(*sites[turn % len(sites)], found, forever=draw.random() < 0.5)
            progress()
