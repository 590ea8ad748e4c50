"""Prepare train's folder, and compute the key of its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from distillctl import ranks
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace, digest, make_folder, writable
from distillctl.training import collectives, metrics_log
from distillctl.training.checkpoints import Checkpoints, forget


def prepare(recipe: Recipe, workspace: Workspace) -> Path:
    """Create train/, invalidate its manifest and make torch deterministic."""
    folder = workspace.folder("train")
    if ranks.is_first():
        workspace.invalidate("train")
        with writable(folder):
            make_folder(folder)
        if not recipe.train.control:  # an earlier recipe's
            metrics_log.keep_lines(folder / "metrics.jsonl", "control", 0)
            forget(folder / "checkpoints", "control")
    collectives.barrier()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return folder


def checkpoints(recipe: Recipe, workspace: Workspace, run: str, student: str | None) -> Checkpoints:
    """Return the checkpoints of a run on these soft labels, with this recipe. student: fingerprint of the model that
    the run starts from, if there is one."""
    collect = workspace.manifest("collect")
    assert collect is not None
    asked = recipe.model_dump(mode="json", include={"seed", "student", "train"})
    if asked["train"]["weights"] is None:  # older versions did not have it; their checkpoints stay good
        del asked["train"]["weights"]
    key = digest([asked, collect.fingerprint, student])
    return Checkpoints(workspace.folder("train") / "checkpoints", run, key)
