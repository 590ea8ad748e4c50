"""make bench-students, make bench-weights: other students of a run's labels, scored on the same held-out rows.

Each variant is the recipe with some settings of `student` or `train`, trained on the labels of one run directory, so
only the student differs. Its float32 graph is scored before quantization: mean chrF++ of a row (or the recipe's own
first metric) with its 95 % interval, and how much better the recipe's own student is on the same rows. Variants that
are trained already are not trained again. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.metrics import text as text_metrics
from distillctl.metrics.statistics import difference_interval, mean_interval
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.facts import TrainFacts
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.text import TextLabels

OWN = "the recipe"


def train(recipe: Path, labels: Path, run_dir: Path, settings: Sequence[str]) -> None:
    """Train the recipe with these settings on the labels of another run directory."""
    shutil.copytree(labels / "collect", run_dir / "collect", dirs_exist_ok=True)
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "distillctl", "train", str(recipe), "--run-dir", str(run_dir), *sets]
    subprocess.run(command, check=True)


def measure(recipe: Recipe, run_dirs: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return each student's figures. The first one is the recipe's own."""
    spaces = {name: Workspace(path) for name, path in run_dirs.items()}
    first = next(iter(spaces.values()))
    reference = view_table.column(first.folder("collect") / "views.parquet", "eval", "reference")
    teacher = response_shards.read(first, "full", "eval", TextLabels(Text())).text
    rows: dict[str, np.ndarray] = {}
    for name, space in spaces.items():
        texts = pq.read_table(space.folder("train") / "eval.parquet").column("student").to_pylist()
        rows[name] = text_metrics.row_scores(recipe.generate.score, texts, reference, teacher, recipe.generate.format)
    own, *others = rows
    figures = {name: _figures(space, rows[name]) for name, space in spaces.items()}
    for name in others:
        figures[name]["own_better_by"] = difference_interval(rows[own], rows[name]).as_json()
    return figures


def _figures(space: Workspace, scores: np.ndarray) -> dict[str, Any]:
    facts, manifest = space.facts("train", TrainFacts), space.manifest("train")
    assert manifest is not None
    return {
        "parameters": facts.parameters,
        "score": mean_interval(scores).as_json(),
        "agreement": facts.agreement,
        "kl": facts.kl,
        "train_seconds": manifest.seconds,
    }


def main() -> None:
    """Train the variants, and print the table and the JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.students", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run_dir", type=Path, help="a run directory of the recipe, trained")
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar=("NAME", "SETTING"), help="a student to train"
    )
    options = parser.parse_args()
    run_dirs = {OWN: options.run_dir}
    for name, *settings in options.variant:
        run_dirs[name] = options.run_dir.with_name(f"{options.run_dir.name}-{name}")
        train(options.recipe, options.run_dir, run_dirs[name], settings)
    found = measure(recipes.load(options.recipe), run_dirs)
    console.text(f"{'':16}{'weights':>9}{'score':>8}{'95 % interval':>16}{'the recipe is better by':>26}{'train':>9}")
    for name, row in found.items():
        score = row["score"]
        text = f"{name:16}{row['parameters'] / 1e6:7.1f} M{score['value']:8.3f}{score['low']:9.3f} …{score['high']:.3f}"
        if better := row.get("own_better_by"):
            text += f"{better['value']:12.3f} ({better['low']:.3f} … {better['high']:.3f})"
        console.text(text + f"{row['train_seconds']:7.0f} s")
    console.print_json(found)


if __name__ == "__main__":
    main()
