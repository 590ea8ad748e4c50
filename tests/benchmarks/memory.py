"""make bench-memory: what collect and train take at their peak, with few rows and with many.

Every measurement is a stage in a process of its own, with tiny models made on the spot: what does not depend on the
rows is as small as it can be, so what does shows. Few and many take turns. collect reads the rows from a file and asks
a real teacher under a long context; train reads soft labels that were drawn at random and written as collect writes
them. The eval rows are as many in both. Peak RSS is what the kernel says of the process. Prints a table, then one JSON
object: ``rss_ratio`` is that of the worst stage.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillctl import console

STAGES = ("collect/labels", "collect/texts", "train/labels", "train/texts")
WORKER = "tests.benchmarks.memory_worker"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stages, tell, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs=2, default=(1_000, 50_000), metavar=("FEW", "MANY"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), chosen.stages, chosen.rows, chosen.runs)
    _told(figures)
    console.text(json.dumps(figures))


def measure(folder: Path, stages: Sequence[str], rows: Sequence[int], runs: int) -> dict[str, Any]:
    """Median peak RSS of each stage at both sizes, in bytes, and their ratio."""
    for count in rows:
        console.note(f"making {count:,} rows")
        _worker("prepare", folder, count, *stages)
    found: dict[str, dict[int, list[int]]] = {stage: {count: [] for count in rows} for stage in stages}
    for turn in range(runs):
        for stage in stages:
            for count in rows:
                peak = int(_worker("measure", folder, count, stage))
                console.note(f"{turn + 1} of {runs}: {stage} at {count:,} rows takes {peak / 2**20:,.1f} MiB")
                found[stage][count].append(peak)
    medians = {stage: {count: statistics.median(peaks) for count, peaks in of.items()} for stage, of in found.items()}
    few, many = rows
    ratios = {stage: of[many] / of[few] for stage, of in medians.items()}
    return {
        "rss_ratio": max(ratios.values()),
        "rows": list(rows),
        "stages": {
            stage: {"rss_ratio": ratios[stage], "peak_rss_bytes": {str(count): peak for count, peak in of.items()}}
            for stage, of in medians.items()
        },
        "runs": runs,
    }


def _worker(*words: Any) -> str:
    environment = {**os.environ, "CI": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", WORKER, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout


def _told(figures: dict[str, Any]) -> None:
    few, many = figures["rows"]
    console.text(f"{'peak RSS':<16}{f'{few:,} rows':>14}{f'{many:,} rows':>14}{'ratio':>8}")
    for stage, of in figures["stages"].items():
        sizes = "".join(f"{of['peak_rss_bytes'][str(count)] / 2**20:>10,.1f} MiB" for count in (few, many))
        console.text(f"{stage:<16}{sizes}{of['rss_ratio']:>8.3f}")


if __name__ == "__main__":
    main()
