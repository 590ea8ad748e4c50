"""bundle: what an app gets, every graph in it checked against the one that quantize measured."""

from __future__ import annotations

from distillctl import tasks
from distillctl.bundle import builder
from distillctl.data import view_table
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Nothing is committed unless all graphs answer as quantize's ONNX graph does (GateFailed)."""
    task = tasks.of(recipe, workspace)
    task.check_bundle()
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    with replacing_folder(workspace.folder("bundle")) as folder:
        facts = task.fill_bundle(builder.BundleBuilder.begin(recipe, workspace, folder, task.runtime), views)
    return builder.outcome(workspace, facts)
