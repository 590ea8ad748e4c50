"""``python -m tests.durability``: kills, faults, signals and losses of power over all stages; the last line on stdout
is one JSON object. Exit 1 when anything was lost, half accepted or otherwise than it would have been."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.durability import faults, forks, kills, power, signals
from tests.durability.lab import STAGES, Lab, Trials


def main() -> None:
    asked = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing stays mounted, and what was found is told
    forks.preload()
    parts = (
        ("kills", kills, kills.Found(), asked.kills),
        ("faults", faults, faults.Found(), asked.faults),
        ("signals", signals, Trials("signals"), asked.signals),
        ("power", power, Trials("power_losses"), asked.powers),
    )
    try:
        # In memory: what is looked at is what was written in which order, and an fsync costs nothing there.
        memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(prefix="durability-", dir=memory) as root:
            labs = [Lab.make(task, Path(root), asked.stages) for task in asked.tasks]
            _say("unbroken: " + ", ".join(f"{lab.task} {stage}" for lab in labs for stage in lab.stages))
            for name, part, found, count in parts:
                part.run(labs, count, asked.seed, found, _told(name, found))
    finally:
        first, *others = [(name, found.facts()) for name, _, found, _ in parts]
        sys.stdout.write(json.dumps(first[1] | dict(others)) + "\n")
    sys.exit(any(found.problems for _, _, found, _ in parts))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.durability", description=__doc__)
    parser.add_argument("--kills", type=int, default=510)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--powers", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=_names, default=("labels", "texts"))
    parser.add_argument("--stages", type=_names, default=STAGES)
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _told(name: str, found: Any) -> Callable[[], None]:
    """Problems as they come, and now and then how far it is."""
    began = last = time.monotonic()
    told = 0

    def progress() -> None:
        nonlocal last, told
        for problem in found.problems[told:]:
            _say(problem)
        told = len(found.problems)
        if time.monotonic() - last > 10:
            last = time.monotonic()
            _say(f"{name}: {found.done.total()} in {last - began:.0f} s, {told} problems")

    return progress


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
