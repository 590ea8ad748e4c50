"""export: the student as ONNX, checked against PyTorch on real rows."""

from __future__ import annotations

from distillctl import tasks
from distillctl.data import view_table
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Nothing is committed unless ONNX Runtime and PyTorch agree on the eval rows (GateFailed)."""
    task = tasks.of(recipe, workspace)
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    with replacing_folder(workspace.folder("export")) as staged:
        exported = task.export(workspace.folder("train") / "model", staged, views)
        figures = {"graph": "fp32", "size": f"{exported.graph.bytes / 1e6:.2f} MB", **exported.agreement}
        text = task.card(staged, views, [figures], exported.builder)
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    return StageOutput(outputs, exported.facts)
