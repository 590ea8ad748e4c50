"""``python -m tests.durability.recipe RECIPE RUN_DIR``: kill -9 a whole run at random moments. It must end the same.

RUN_DIR is an unbroken run of the recipe. A second run is killed, and started again each time, until its model is
quantized. The moments are spread over the time that the unbroken stages took, so long stages are killed more often.
Then each file of train, export and quantize, manifests aside, must be as in the unbroken run. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from distillctl.run_dir.workspace import Workspace

STAGES = ("collect", "train", "export", "quantize")
WITHOUT_TIMES = ("train", "export", "quantize")
TIMED = {"README.md", "manifest.json", "metrics.jsonl"}
"""Files that say when or how fast something was done."""


def main() -> None:
    """Print the number of kills by stage, and the files that differ; exit 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability.recipe", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    unbroken, killed = Workspace(asked.run_dir), Workspace(asked.run_dir.with_name(asked.run_dir.name + "-killed"))
    shutil.rmtree(killed.root, ignore_errors=True)
    seconds = {stage: _seconds(unbroken, stage) for stage in STAGES}
    draw = random.Random(asked.seed)
    moments = sorted(draw.uniform(0, sum(seconds.values())) for _ in range(asked.kills))
    kills, began = dict.fromkeys(STAGES, 0), 0.0
    for stage in STAGES:
        command = [sys.executable, "-m", "distillctl", stage, str(asked.recipe), "--run-dir", str(killed.root)]
        since = began
        for moment in [each for each in moments if began <= each < began + seconds[stage]]:
            kills[stage] += _killed(command, moment - since)
            since = moment
        subprocess.run(command, check=True)
        began += seconds[stage]
    differ = [name for stage in WITHOUT_TIMES for name in _other_files(unbroken.folder(stage), killed.folder(stage))]
    sys.stdout.write(json.dumps({"kills": kills, "seconds": seconds, "differ": differ}) + "\n")
    sys.exit(bool(differ))


def _seconds(unbroken: Workspace, stage: str) -> float:
    manifest = unbroken.manifest(stage)
    if manifest is None:
        raise SystemExit(f"{unbroken.root} has no {stage}: run the recipe first")
    return manifest.seconds


def _killed(command: list[str], seconds: float) -> bool:
    """Run the command and kill it with all its processes after some seconds; return whether it was still at work."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _other_files(first: Path, second: Path) -> list[str]:
    """Return the files of two folders that are not the same, byte by byte."""
    names = {path.relative_to(folder) for folder in (first, second) for path in folder.rglob("*") if path.is_file()}
    return [
        f"{first.name}/{name}"
        for name in sorted(names)
        if name.name not in TIMED
        and "checkpoints" not in name.parts
        and not ((first / name).exists() and (second / name).exists() and _same(first / name, second / name))
    ]


def _same(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    main()
