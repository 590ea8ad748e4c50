"""The report's code to ask the deployed graph with, in every language there is a snippet for."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distillctl.data.view_table import ViewTable
from distillctl.data.view_template import ViewTemplate
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace
from distillctl.snippets import code as snippets
from distillctl.snippets.reading import Reading

_TOLD = ("name", "sample", "versions", "inputs", "builder", "begin", "stop", "max_new_tokens")
"""What snippets have to know of the contract's facts; each kind of task has some of them."""


def usage_facts(recipe: Recipe, workspace: Workspace, views: ViewTable, train: Mapping[str, Any]) -> dict[str, Any]:
    """For the contract. template, view_limit: what makes a view of an input, and the tokens it may have; sample: what
    the code asks, a held-out row's input (its view, where the code has to be given that)."""
    reading = Reading.of(recipe, views, train, workspace.folder("quantize"))
    rows = views.simplified if reading.template.form == "view" else views.input
    return {"template": reading.template.model_dump(mode="json"), "view_limit": reading.limit, "sample": rows[0]}


def code(facts: Mapping[str, Any], run_dir: Path) -> dict[str, Markup]:
    """Language → code, escaped for HTML, to be run in the run directory. facts: the contract's; run_dir: where its
    files are now."""
    inside = Path(facts["artifact"]).parent
    reading = Reading(ViewTemplate.model_validate(facts["template"]), facts["view_limit"], run_dir / inside)
    known = {key: facts[key] for key in _TOLD if key in facts} | {"ids_graph": "model.onnx", "text_in": False}
    shown = f"Path({str(inside)!r})"
    return {
        file: Markup(html.escape(snippets.render(file, reading, "report", folder=shown, **known), quote=False))
        for file in facts["snippets"]
    }
