"""Determine what a recipe reaches outside its own folder: files to read, the server to ask, code to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillctl.data import examples
from distillctl.models import model_source, package_files
from distillctl.recipe import OpenAITeacher, Recipe
from distillctl.trust import approvals


def outside(recipe: Recipe) -> dict[str, Path]:
    """Return recipe key → file or folder outside the recipe's folder from which rows, templates or examples are read.

    Links are resolved. Files of installed packages do not count.
    """
    home = recipe.folder.resolve()
    named = examples.named_files(recipe)
    paths = {key: path.resolve() for key, path in examples.input_files(recipe).items()}
    return {
        key: path
        for key, path in paths.items()
        if not named[key].startswith(package_files.PREFIX) and not path.is_relative_to(home)
    }


def _models(recipe: Recipe) -> dict[str, Path]:
    """Return recipe key → model outside the recipe's folder. Models are loaded, never sent."""
    home, paths = recipe.folder.resolve(), {}
    for side, find in (("teacher", model_source.teacher), ("student", model_source.student)):
        source = find(recipe)
        if isinstance(source, model_source.ServedSource):
            source = source.tokenizer
        if source is None or source.path is None or source.reference.startswith(package_files.PREFIX):
            continue
        if not source.path.is_relative_to(home):
            paths[side] = source.path
    return paths


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return the facts for --dry-run.

    reads: recipe key → path. sends: None, or the host, the key's variable, and the approvals that are missing.
    runs_code: recipe key → whose code.
    """
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
