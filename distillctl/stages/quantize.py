"""quantize: smaller graphs, scored on every held-out row; the best inside the recipe's gate is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distillctl import console, tasks
from distillctl.data import view_table
from distillctl.graphs import sidecar_files
from distillctl.quantizers import search
from distillctl.quantizers.search import FP32
from distillctl.recipe import CANDIDATES, Recipe
from distillctl.run_dir.facts import Origin
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """None inside the gate: GateFailed with every candidate's figures, and what was committed before stays."""
    task = tasks.of(recipe, workspace)
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    held_out = task.held_out(views)
    exported = workspace.folder("export")
    sound = sidecar_files.sound(exported, task.runtime, "distillctl export RECIPE")
    with sound, replacing_folder(workspace.folder("quantize")) as staged:
        held_out.check(exported)
        with tempfile.TemporaryDirectory(dir=staged) as scratch:
            candidates = recipe.quantize.candidates or CANDIDATES[held_out.architecture]
            calibration, seconds = held_out.calibration(exported), recipe.quantize.budget_seconds
            built = search.build(candidates, exported, Path(scratch), calibration, seconds)
            with console.progress("score", len(views.id)) as bar:
                figures = held_out.measure({FP32: exported, **built.folders}, bar.advance)
            selection = search.select_candidate(
                staged, built, exported, figures, recipe.quantize, held_out.unit, held_out.metric
            )
        chosen = selection.chosen.name
        held_out.write(staged / "eval.parquet", chosen)
        held_out.review(chosen)
        text = task.card(staged, views, selection.shown, workspace.facts("export", Origin).builder)
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    return StageOutput(outputs, selection.facts | held_out.facts(chosen))
