"""``python -m tests.durability``: kills, faults, signals and losses of power over all stages; the last line on stdout
is one JSON object. Exit 1 when anything was lost, half accepted or otherwise than it would have been."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.durability import faults, forks, kills, power, signals
from tests.durability.lab import STAGES, Lab


def main() -> None:
    asked = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays mounted
    forks.preload()
    with contextlib.ExitStack() as stack:
        # In memory: what is looked at is what was written in which order, and an fsync costs nothing there.
        memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durability-", dir=memory)))
        disk = stack.enter_context(faults.small_disk(root / "disk")) if asked.faults else None
        labs = [Lab.make(task, root, asked.stages) for task in asked.tasks]
        _say("unbroken: " + ", ".join(f"{lab.task} {stage}" for lab in labs for stage in lab.stages))
        found = kills.run(labs, asked.kills, asked.seed, _told("kills", lambda one: one.kills.total()))
        refused = faults.run(labs, asked.faults, asked.seed, disk, _told("faults", lambda one: one.faults.total()))
        sent = signals.run(labs, asked.signals, asked.seed, _told("signals", lambda one: one.signals.total()))
        lost = power.run(labs, asked.powers, asked.seed, _told("losses of power", lambda one: one.losses.total()))
    facts = found.facts() | {"faults": refused.facts(), "signals": sent.facts(), "power": lost.facts()}
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.exit(any(one.problems for one in (found, refused, sent, lost)))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--powers", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=_names, default=("labels", "texts"))
    parser.add_argument("--stages", type=_names, default=STAGES)
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _told(what: str, count: Callable[[Any], int]) -> Callable[[Any], None]:
    """Problems as they come, and now and then how far it is."""
    began = last = time.monotonic()
    told = 0

    def progress(found: Any) -> None:
        nonlocal last, told
        for problem in found.problems[told:]:
            _say(problem)
        told = len(found.problems)
        if time.monotonic() - last > 10:
            last = time.monotonic()
            _say(f"{count(found)} {what}, {told} problems, {last - began:.0f} s")

    return progress


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
