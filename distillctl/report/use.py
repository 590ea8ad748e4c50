"""The report's code to ask the deployed graph with, in every language there is a snippet for."""

from __future__ import annotations

import html
from pathlib import Path

from markupsafe import Markup

from distillctl.data.view_table import ViewTable
from distillctl.data.view_template import ViewTemplate
from distillctl.recipe import Recipe
from distillctl.report.facts import ReportFacts, UsageFacts
from distillctl.run_dir.facts import StudentFacts
from distillctl.run_dir.workspace import Workspace
from distillctl.snippets import code as snippets
from distillctl.snippets.reading import Reading

_KNOWN = ("name", "sample", "versions", "inputs", "builder", "begin", "stop", "max_new_tokens", "placeholder")
"""The report's facts that snippets need; each kind of task has some of them."""


def usage_facts(recipe: Recipe, workspace: Workspace, views: ViewTable, train: StudentFacts) -> UsageFacts:
    """Return the facts that the code needs."""
    reading = Reading.of(recipe, views, train, workspace.folder("quantize"))
    rows = views.simplified if reading.template.form == "view" else views.input
    template = ViewTemplate(**reading.template.model_dump())  # with its defaults
    return UsageFacts(template=template, view_limit=reading.limit, sample=rows[0])


def code(facts: ReportFacts, run_dir: Path) -> dict[str, Markup]:
    """Return language → code, escaped for HTML, to run in the run directory. run_dir: the place of its files now."""
    if facts.artifact is None or facts.template is None or facts.view_limit is None:
        return {}  # nothing is deployed
    inside = Path(facts.artifact).parent
    reading = Reading(facts.template, facts.view_limit, run_dir / inside)
    known = {key: facts.given[key] for key in _KNOWN if key in facts.given}
    known |= {"ids_graph": "model.onnx", "text_in": False}
    shown = f"Path({str(inside)!r})"
    return {
        file: Markup(html.escape(snippets.render(file, reading, "report", folder=shown, **known), quote=False))
        for file in facts.snippets
    }
