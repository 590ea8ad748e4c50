"""``python -m tests.durability.recipe RECIPE RUN_DIR``: kill -9 a whole run at random moments. It must end the same.

RUN_DIR is an unbroken run of the recipe. A second run is killed, and started again each time, until its model is
quantized. The moments are spread over the time that the unbroken stages took, so long stages are killed more often.
Then each output, measured times aside, must be as in the unbroken run. Prints one JSON object.
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

from tests.durability import lab

STAGES = ("collect", "train", "export", "quantize")


def main() -> None:
    """Print the number of kills by stage, and the outputs that differ; exit 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.durability.recipe", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    unbroken, killed = asked.run_dir, asked.run_dir.with_name(asked.run_dir.name + "-killed")
    shutil.rmtree(killed, ignore_errors=True)
    seconds = {stage: _seconds(unbroken, stage) for stage in STAGES}
    draw = random.Random(asked.seed)
    moments = sorted(draw.uniform(0, sum(seconds.values())) for _ in range(asked.kills))
    kills, began = dict.fromkeys(STAGES, 0), 0.0
    for stage in STAGES:
        command = [sys.executable, "-m", "distillctl", stage, str(asked.recipe), "--run-dir", str(killed)]
        since = began
        for moment in [each for each in moments if began <= each < began + seconds[stage]]:
            kills[stage] += _killed(command, moment - since)
            since = moment
        subprocess.run(command, check=True)
        began += seconds[stage]
    differ = [f"{stage}/{name}" for stage in STAGES for name in lab.other_bits(killed, unbroken, stage)]
    sys.stdout.write(json.dumps({"kills": kills, "seconds": seconds, "differ": differ}) + "\n")
    sys.exit(bool(differ))


def _seconds(run: Path, stage: str) -> float:
    found = lab.manifest(run, stage)
    if found is None:
        raise SystemExit(f"{run} has no {stage}: run the recipe first")
    return float(found["seconds"])


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


if __name__ == "__main__":
    main()
