"""Change one byte at a time in a copy of a finished run directory, and count which changes `status` notices.

``python -m tests.run_dir.flips [RECIPE --run-dir DIR]``; without a run directory it makes that of a tiny project, with
a bundle and a device.

Every other byte is drawn from all bytes, the others from one file after the other, so that small files have their
share. The last line on stdout is one JSON object. Exit 1 when a change went unseen in a file that is not named as one
that no result can depend on (`distillctl.run_dir.workspace.NOT_LOAD_BEARING`).
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.models import model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import NOT_LOAD_BEARING, Workspace


def count(recipe: Recipe, run: Path, flips: int, seed: int = 0) -> dict[str, Any]:
    """Change bytes of ``run``, one at a time, each put back before the next.

    noticed: the stage is damaged, for a reason that names the file, and there is a command that mends it. places:
    changes by the folder they were in. unseen: file and place of those that nobody noticed.
    """
    draw, files = random.Random(seed), sorted(p for p in run.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    found: dict[str, Any] = {"flips": flips, "noticed": 0, "not_load_bearing": 0, "unseen": []}
    places = Counter[str]()
    # What lies outside the run directory stays as it is, and is read once.
    fingerprint = functools.cache(model_source.ModelSource.fingerprint)
    with mock.patch.object(model_source.ModelSource, "fingerprint", lambda source: fingerprint(source)):
        if others := [state for state in pipeline.status(recipe, Workspace(run)) if state.state != "fresh"]:
            raise SystemExit(f"{run} is not a finished run directory: {others[0]}")
        for number in range(flips):
            [path] = draw.choices(files, sizes) if number % 2 else [files[number // 2 % len(files)]]
            at, mask = draw.randrange(path.stat().st_size), draw.randint(1, 255)
            name = path.relative_to(run).as_posix()
            places[name.partition("/")[0]] += 1
            _flip(path, at, mask)
            if name in NOT_LOAD_BEARING:
                found["not_load_bearing"] += 1
            elif _noticed(recipe, run, name):
                found["noticed"] += 1
            else:
                found["unseen"].append(f"{name}:{at}")
            _flip(path, at, mask)
    return found | {"files": len(files), "bytes": sum(sizes), "places": dict(sorted(places.items()))}


def _flip(path: Path, at: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        before = file.read(1)[0]
        file.seek(at)
        file.write(bytes([before ^ mask]))


def _noticed(recipe: Recipe, run: Path, name: str) -> bool:
    damaged = [state for state in pipeline.status(recipe, Workspace(run)) if state.state == "damaged"]
    return any(name in why and state.next for state in damaged for why in state.why)


def finished(folder: Path) -> tuple[Path, Path]:
    """The recipe and the run directory of a tiny project: all stages, a bundle, and what a device measured."""
    from distillctl.phone import devices
    from tests.fixtures import project
    from tests.phone.test_devices import measured

    path, workspace = (
        project.make(folder, rows=60, data={"eval_rows": 20}, train={"epochs": 2}),
        Workspace(folder / "run"),
    )
    recipe = recipes.load(path)
    for _ in pipeline.run(recipe, workspace):
        pass
    pipeline.stage("bundle", recipe, workspace)
    read = {name: manifest.fingerprint for name in pipeline.SERVED if (manifest := workspace.manifest(name))}
    devices.add(workspace, measured(workspace, "one"), read, 0, 1.0)
    pipeline.stage("report", recipe, workspace)  # with a column for the device
    return path, workspace.root


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.run_dir.flips", description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if (asked.recipe is None) != (asked.run_dir is None):
        parser.error("RECIPE and --run-dir go together")
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        if asked.recipe is None:
            recipe, run = finished(Path(folder))
        else:
            recipe, run = asked.recipe, shutil.copytree(asked.run_dir, Path(folder) / "run")
        found = count(recipes.load(recipe), run, asked.flips, asked.seed)
    sys.stderr.write("".join(f"unseen: {place}\n" for place in found["unseen"]))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.exit(bool(found["unseen"]))


if __name__ == "__main__":
    main()
