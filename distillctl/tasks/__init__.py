"""Task kinds. A stage has one skeleton for all of them; what differs is asked of the recipe's kind (`base.Task`)."""

from __future__ import annotations

from typing import Any, get_args

from distillctl.recipe import Recipe, implementation
from distillctl.run_dir.workspace import Workspace
from distillctl.tasks.base import Task


def kinds() -> dict[str, type[Task]]:
    """Return every kind of task by its name in the recipe."""
    sections: list[Any] = [get_args(section)[0] for section in get_args(Recipe.model_fields["task"].annotation)]
    classes: dict[str, Any] = {
        get_args(section.model_fields["kind"].annotation)[0]: implementation(section) for section in sections
    }
    return classes


def of(recipe: Recipe, workspace: Workspace) -> Task:
    """Return what the stages ask about this recipe's kind of task, in this run directory."""
    task: Task = implementation(recipe.task)(recipe, workspace)
    return task
