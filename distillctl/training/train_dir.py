"""Prepare train's folder, compute the key of its checkpoints, and save the trained student."""

from __future__ import annotations

from pathlib import Path

import torch

from distillctl import ranks
from distillctl.models import model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace, digest, make_folder, replacing_folder, writable
from distillctl.students.student import Student
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


def checkpoints(recipe: Recipe, workspace: Workspace, run: str) -> Checkpoints:
    """Those of a run on these soft labels, with this recipe, from this student."""
    collect = workspace.manifest("collect")
    assert collect is not None
    asked = recipe.model_dump(mode="json", include={"seed", "student", "train"})
    source = model_source.student(recipe)
    key = digest([asked, collect.fingerprint, source.fingerprint() if source else None])
    return Checkpoints(workspace.folder("train") / "checkpoints", run, key)


def save(student: Student, folder: Path) -> None:
    """Model and tokenizer. The tokenizer neither pads nor cuts: cutting would take the end of a whole view, where the
    template may go on after the input; what is too long was cut inside its view (`data.truncation`)."""
    tokenizer = student.tokenizer
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    with replacing_folder(folder) as temporary:
        student.model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
