"""What a recipe reaches outside its own folder: files that it reads, the server that it asks, code that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillctl.data import examples
from distillctl.models import model_source, package_files
from distillctl.recipe import OpenAITeacher, Recipe
from distillctl.trust import approvals


def outside(recipe: Recipe) -> dict[str, Path]:
    """Recipe key → the file or folder outside the recipe's folder that rows, templates or examples are read from, links
    resolved. What an installed package carries is not counted."""
    here = recipe.folder.resolve()
    named = examples.named_files(recipe)
    found = {key: path.resolve() for key, path in examples.input_files(recipe).items()}
    return {
        key: path
        for key, path in found.items()
        if not named[key].startswith(package_files.PREFIX) and not path.is_relative_to(here)
    }


def _models(recipe: Recipe) -> dict[str, Path]:
    """As `outside`, of models; their files are loaded, never sent."""
    here, found = recipe.folder.resolve(), {}
    for side, find in (("teacher", model_source.teacher), ("student", model_source.student)):
        source = find(recipe)
        if isinstance(source, model_source.ServedSource):
            source = source.tokenizer
        if source is None or source.path is None or source.reference.startswith(package_files.PREFIX):
            continue
        if not source.path.is_relative_to(here):
            found[side] = source.path
    return found


def describe(recipe: Recipe) -> dict[str, Any]:
    """For --dry-run: `reads` (recipe key → path), `sends` (None, or the host, the key's variable, and whether the user
    approved what has to be approved), `runs_code` (recipe key → whose)."""
    read = outside(recipe)
    sends = None
    if isinstance(teacher := recipe.teacher, OpenAITeacher):
        wanted = [approval for approval in approvals.wanted(teacher, read) if not approvals.is_approved(approval)]
        sends = {
            "host": teacher.host,
            "key": teacher.api_key_env,
            "wants_approval": ", ".join(map(str, wanted)) or None,
        }
    return {
        "reads": {key: str(path) for key, path in {**read, **_models(recipe)}.items()},
        "sends": sends,
        "runs_code": approvals.remote_code(recipe),
    }
