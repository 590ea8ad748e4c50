"""Choose the workers for a recipe's teacher: local ones that load its weights, or a server's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from distillctl.models.model_source import ModelSource, ServedSource
from distillctl.recipe import OpenAITeacher, Recipe
from distillctl.teachers import engines, labelling
from distillctl.teachers.openai import worker_pool as served
from distillctl.teachers.openai.rows import Served


def open_pool(recipe: Recipe, source: ModelSource, folder: Path) -> AbstractContextManager[Any]:
    """Open an `teachers.worker_pool.WorkerPool` for the block. folder: collect's, where a server's answers are kept."""
    spec = recipe.teacher
    if isinstance(spec, OpenAITeacher):
        assert isinstance(source, ServedSource)
        again = f"distillctl collect {recipe.path}"
        return served.open_pool(Served(spec, source, recipe.task, folder / "served", again))
    return engines.open_pool(recipe.collect, labelling.Local(spec, source, recipe.task))
