"""The report: one self-contained HTML page; its facts are the contract that CI jobs read."""

from __future__ import annotations

from distillctl.recipe import Recipe
from distillctl.report import contract, page
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Write report.html from what the other stages committed."""
    facts = contract.build(recipe, workspace)
    text = page.render(facts, contract.series(workspace))
    with replacing_folder(workspace.folder("report")) as staged:
        (staged / "report.html").write_text(text, encoding="utf-8")
    return StageOutput(outputs=["report.html"], facts=facts)
