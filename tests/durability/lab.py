"""Two tiny projects, of labels and of texts, each run once unbroken; and what may be true of a run directory after
something went wrong, read from the files by nothing of distillctl's."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.durability import forks, operations
from tests.durability.operations import Operation

STAGES = ("collect", "train", "export", "quantize", "bench", "report", "bundle")
NEXT = dict(itertools.pairwise(STAGES[:-1]))
"""Stage → one that reads it."""
TIMED = {"quantize": {"candidates.json", "README.md"}, "bench": None}
"""Outputs with measured times in them, which no two runs share; None: all of them."""
SHARD = re.compile(r"/collect/shards/[^/]+\.parquet$")
CHECKPOINT = re.compile(r"/train/checkpoints/(\w+)-[0-9a-f]+-step-(\d+)$")
RESUMED = re.compile(r"train: (\w+) continues from step (\d+)")


@dataclass
class Unbroken:
    """A stage run to its end: its operations, and the seconds its process computed."""

    operations: list[Operation]
    cpu_seconds: float


@dataclass
class Trials:
    """done: of one kind, by stage. problems: what should not have come of it."""

    kind: str
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return {
            self.kind: self.done.total(),
            "problems": len(self.problems),
            "stages": dict(sorted(self.done.items())),
        }


@dataclass
class Lab:
    """One project. Run directories for trials are made in ``scratch``."""

    task: str
    recipe: Path
    scratch: Path
    reference: Path
    stages: tuple[str, ...]
    unbroken: dict[str, Unbroken] = field(default_factory=dict)

    @classmethod
    def make(cls, task: str, root: Path, stages: tuple[str, ...]) -> Lab:
        """The project, and its reference run; what that imports is imported here, for all later forks."""
        folder = root / task
        folder.mkdir(parents=True)
        forks.call(partial(_MAKERS[task], folder))
        lab = cls(task, folder / "recipe.yaml", folder / "runs", folder / "reference", stages)
        lab.scratch.mkdir()
        for stage in STAGES[: 1 + max(map(STAGES.index, stages))]:
            forks.learn(lambda told, stage=stage: lab._first(stage, told))
        return lab

    def _first(self, stage: str, told: Any) -> None:
        log = self.scratch / "operations"
        ended = self.run(stage, self.reference, prepare=lambda: record(self.reference, log), finish=told)
        if ended.code:
            raise RuntimeError(f"{self.task} {stage}: {ended.err}")
        self.unbroken[stage] = Unbroken(read(log), ended.cpu_seconds)

    def words(self, stage: str, run: Path, *more: str) -> list[Any]:
        """The command line."""
        command = ["export", self.recipe, "--bundle"] if stage == "bundle" else [stage, self.recipe]
        return [*command, "--run-dir", run, *more]

    def run(self, stage: str, run: Path, *more: str, **hooks: Any) -> forks.Ended:
        return forks.run(*self.words(stage, run, *more), **hooks)

    def begin(self, stage: str, name: str, *, done: bool) -> Path:
        """A run directory in which all before ``stage`` is committed; ``done``: it too."""
        run = self.scratch / name
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for one in STAGES[: STAGES.index(stage) + done]:
            if (self.reference / one).is_dir() and (one != "report" or stage == "report"):
                shutil.copytree(self.reference / one, run / one)
        if done and stage == "bundle":
            shutil.copyfile(self.reference / "bundle.zip", run / "bundle.zip")
        return run

    def states(self, run: Path) -> dict[str, str]:
        """What ``status`` says."""
        ended = forks.run("status", self.recipe, "--run-dir", run, "--json")
        if ended.code:
            raise RuntimeError(f"status: {ended.err}")
        return {one["stage"]: one["state"] for one in json.loads(ended.out)["stages"]}

    def other_bits(self, stage: str, run: Path) -> list[str]:
        """In what the stage ended otherwise than the reference did."""
        return other_bits(run, self.reference, stage)

    def surplus(self, stage: str, run: Path) -> list[str]:
        """What lies in the stage's folder, or hidden beside it, that no unbroken run leaves there."""
        found, wanted = (
            {str(p.relative_to(root)) for p in [*(root / stage).rglob("*"), *root.glob(".*"), *root.glob("tmp*")]}
            for root in (run, self.reference)
        )
        return sorted(found - wanted)


# ── what stands in a run directory ───────────────────────────────────────────────────────────────


def manifest(run: Path, stage: str) -> dict[str, Any] | None:
    path = run / stage / "manifest.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def altered(run: Path) -> list[str]:
    """Files that are not as a manifest says: there should never be any."""
    found = []
    for stage in STAGES:
        for name, said in ((manifest(run, stage) or {}).get("outputs") or {}).items():
            path = run / stage / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != said["sha256"]:
                found.append(f"{stage}/{name}")
    return found


def committed(run: Path, log: list[Operation]) -> list[Path]:
    """Of what a process put in place, whole shards and each run's last checkpoint."""
    shards, checkpoints = [], {}
    for one in log:
        path = str(one.path)
        if one.name == "replace" and SHARD.search(path):
            shards.append(one.path)
        elif one.name == "replace" and (match := CHECKPOINT.search(path)):
            checkpoints[match[1]] = one.path
        elif one.name == "unlink" and one.path in shards:
            shards.remove(one.path)
    return [*shards, *checkpoints.values()]


def other_bits(run: Path, reference: Path, stage: str) -> list[str]:
    """The outputs of a stage that are not the same in both runs, measured times aside."""
    found, wanted = (_comparable(one, stage) for one in (run, reference))
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


def _comparable(run: Path, stage: str) -> dict[str, Any]:
    """Output → its hash, or what of it can be compared. Of the training log, its lines without what was timed, in the
    order of their steps: those that are written again come behind the ones of a later run."""
    found = manifest(run, stage) or {"outputs": {}, "recipe": None, "seed": None}
    timed = TIMED.get(stage, set())
    same = {name: one["sha256"] for name, one in found["outputs"].items() if timed is not None and name not in timed}
    if "metrics.jsonl" in same:
        lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        lines = [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]
        same["metrics.jsonl"] = sorted(lines, key=lambda line: (line["run"], line["step"], "loss" in line))
    return same | {"names": sorted(found["outputs"]), "recipe": found["recipe"], "seed": found["seed"]}


# ── what a process did ───────────────────────────────────────────────────────────────────────────


def record(root: Path, log: Path, before: operations.Seen = lambda one: None) -> None:
    """In a victim: note each operation below ``root`` once it is done; a kill loses no note."""
    file = log.open("wb", buffering=0)

    def done(one: Operation) -> None:
        file.write(json.dumps([one.name, str(one.path), one.source and str(one.source)]).encode() + b"\n")

    operations.install(root, before, done)


def read(log: Path) -> list[Operation]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [Operation(name, Path(path), source and Path(source)) for name, path, source in rows]


# ── the projects ─────────────────────────────────────────────────────────────────────────────────

_BENCH = {"quantized_teacher": False, "queries": 2, "processes": 1, "warmup": 0}


def _make_labels(folder: Path) -> None:
    from tests.fixtures import project

    project.make(
        folder,
        rows=60,
        data={"eval_rows": 20},
        train={"epochs": 3, "checkpoint_every": 2, "control": True},
        quantize={"candidates": [{"kind": "dynamic_int8"}]},
        bench=_BENCH,
    )


def _make_texts(folder: Path) -> None:
    from tests.fixtures import real_run_generate

    real_run_generate.recipe(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["shard_rows"] = 4
    recipe["task"]["max_new_tokens"] = 6
    recipe["train"] |= {"checkpoint_every": 2, "epochs": 3}
    recipe["quantize"]["candidates"] = [{"kind": "weight_only", "bits": 8}]
    recipe["bench"] = _BENCH
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


_MAKERS = {"labels": _make_labels, "texts": _make_texts}
