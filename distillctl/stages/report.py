"""The report: one self-contained HTML page; its facts are the contract that CI jobs read."""

from __future__ import annotations

from distillctl.recipe import Recipe
from distillctl.report import contract, page
from distillctl.workspace import Outcome, Workspace, write_text


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Write report.html from what the other stages committed."""
    facts = contract.build(recipe, workspace)
    workspace.retract("report")
    write_text(workspace.folder("report") / "report.html", page.render(facts, contract.series(workspace)))
    return Outcome(outputs=["report.html"], facts=facts)
