"""Task kinds. A stage has one skeleton for all of them; what differs is asked of the recipe's kind (`base.Task`)."""

from __future__ import annotations

from distillctl.recipe import Recipe, implementation
from distillctl.run_dir.workspace import Workspace
from distillctl.tasks.base import Task


def of(recipe: Recipe, workspace: Workspace) -> Task:
    """Return what the stages ask about this recipe's kind of task, in this run directory."""
    task: Task = implementation(recipe.task)(recipe, workspace)
    return task
