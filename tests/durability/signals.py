"""SIGINT and SIGTERM at random moments: the right exit code, one JSON object, no traceback, nothing torn is left, and
the same command ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.durability import forks, lab, operations
from tests.durability.kills import COST
from tests.durability.lab import Lab, Trials
from tests.durability.operations import Operation


def interrupt(one: Lab, stage: str, draw: random.Random, found: Trials) -> None:
    """One signal, or two, to a stage under work."""
    run, unbroken = one.begin(stage, "interrupted", done=False), one.unbroken[stage]
    number, times = draw.choice([signal.SIGINT, signal.SIGTERM]), draw.choice([1, 1, 2])
    if draw.random() < 0.5:
        at = draw.randint(1, len(unbroken.operations))
        prepare, moment = partial(_at, run, at, number, times), f"at operation {at}"
    else:
        seconds, times = draw.uniform(0, unbroken.cpu_seconds), 1
        prepare, moment = partial(forks.signal_after, seconds, number), f"after {seconds:.2f} s"
    ended = one.run(stage, run, "--json", prepare=prepare)
    where = f"{one.task} {stage}: {times} × {signal.Signals(number).name} {moment}"
    if forks.orphans():
        found.problems.append(f"{where}: workers are left behind")
    begun = ended.code != -number and bool(ended.out or ended.err)
    if begun and ended.code:
        found.done[stage] += 1
        if ended.code != 128 + number or "Traceback" in ended.err or ended.out.count("\n") != 1:
            found.problems.append(f"{where}: exit {ended.code}: {ended.out[-500:]}{ended.err[-1500:]}")
        elif json.loads(ended.out)["error"]["exit_code"] != ended.code:
            found.problems.append(f"{where}: {ended.out}")
        torn = [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".aside"))]
        if torn and times == 1:
            found.problems.append(f"{where}: {torn} is left")
        if "once more" in ended.err and times == 1 and stage == "train" and not _kept(run):
            found.problems.append(f"{where}: the step that was done is not in a checkpoint")
    found.problems += [f"{where}: {name} is not as its manifest says" for name in lab.altered(run)]
    again = one.run(stage, run)
    if again.code or (others := one.other_bits(stage, run)):
        found.problems.append(f"{where}: afterwards {again.err[-1500:] if again.code else others}")
    shutil.rmtree(run, ignore_errors=True)


def _kept(run: Path) -> bool:
    """Whether there is a checkpoint of the last step in training's log, or the stage was committed."""
    last = json.loads((run / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    checkpoints = (run / "train" / "checkpoints").glob(f"{last['run']}-*-step-{last['step']:06d}")
    return any(checkpoints) or lab.manifest(run, "train") is not None


def _at(run: Path, at: int, number: int, times: int) -> None:
    """In the victim."""
    count = 0

    def before(one: Operation) -> None:
        nonlocal count
        count += 1
        if at <= count < at + times:
            os.kill(os.getpid(), number)

    operations.install(run, before)


def run(labs: list[Lab], count: int, seed: int, found: Trials, progress: Callable[[], None]) -> None:
    """So many trials over all stages."""
    turns = [(one, stage) for one in labs for stage in one.stages for _ in range(COST[stage])]
    random.Random(seed).shuffle(turns)
    for turn in range(count):
        interrupt(*turns[turn % len(turns)], random.Random(f"{seed} {turn}"), found)
        progress()
