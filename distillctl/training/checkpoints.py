"""Atomic checkpoints of a training run: the complete state before the next step, and the best weights so far.

Tensors are unsharded and in safetensors, so a run can continue on any number of ranks. The first rank writes.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillctl import console, ranks
from distillctl.errors import UpstreamError, first_line
from distillctl.run_dir import checksums
from distillctl.run_dir.manifest import SCRATCH
from distillctl.run_dir.workspace import file_digest, move, replacing_folder
from distillctl.training import collectives
from distillctl.training.learner import Learner
from distillctl.untrusted import limits

_DAMAGED = "-damaged"


@dataclass
class TrainingProgress:
    """The number of steps done, and the best evaluation so far. A lower ``best`` is better."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    evals_without_improvement: Annotated[int, Field(alias="looks_without_better")] = 0
    """Stored under the name that earlier versions gave it."""
    precisions: list[str] = field(default_factory=list)
    """The values of `mixed_precision` that the steps had. It is empty in checkpoints of earlier versions."""

    @property
    def has_best(self) -> bool:
        """Tell whether the criterion was measured before."""
        return self.best_step > 0


_PROGRESS = TypeAdapter(TrainingProgress)


class _SavedState(BaseModel):
    """The content of progress.json."""

    model_config = ConfigDict(extra="forbid")
    progress: TrainingProgress
    schedule: dict[str, Any]
    files: dict[Annotated[str, Field(pattern=r"^[a-z]+\.safetensors$")], str]
    """Name → SHA-256."""

    def check(self, step: int) -> None:
        """Raise ValueError unless this belongs to a checkpoint after ``step``."""
        needed = {"model.safetensors", "optimizer.safetensors", *(["best.safetensors"] * self.progress.has_best)}
        if self.progress.step != step or self.progress.best_step > step or not needed <= self.files.keys():
            raise ValueError("it belongs to another checkpoint")


def forget(folder: Path, run: str, except_prefix: str | None = None) -> None:
    """Remove a run's checkpoints, except those whose names start with ``except_prefix``, and nothing else."""
    for stale in folder.glob(f"{run}-*"):
        if SCRATCH.fullmatch(f"checkpoints/{stale.name}") and (
            except_prefix is None or not stale.name.startswith(except_prefix)
        ):
            shutil.rmtree(stale, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run. key: the hash of everything the run depends on; others of the run are removed."""

    def __init__(self, folder: Path, run: str, key: str) -> None:
        self.folder = folder
        self.prefix = f"{run}-{key[:16]}"
        if ranks.is_first():
            forget(folder, run, except_prefix=self.prefix)

    def latest(self) -> Path | None:
        """Return the folder of the newest checkpoint, if there is one."""
        paths = [path for path in self.folder.glob(f"{self.prefix}-step-*") if re.search(r"step-\d+$", path.name)]
        return max(paths, default=None, key=_step)

    def save(self, learner: Learner, progress: TrainingProgress, best: dict[str, Tensor] | None) -> None:
        """Commit a checkpoint, then remove earlier ones."""
        weights, optimizer, schedule = learner.state()
        if not ranks.is_first():
            return
        target = self.folder / f"{self.prefix}-step-{progress.step:06d}"
        with replacing_folder(target) as folder:
            for name, tensors in (("model", weights), ("optimizer", optimizer), ("best", best)):
                if tensors is not None:
                    save_file(tensors, folder / f"{name}.safetensors")
            files = {path.name: file_digest(path) for path in folder.iterdir()}
            state = {"progress": _PROGRESS.dump_python(progress, by_alias=True), "schedule": schedule, "files": files}
            (folder / "progress.json").write_text(checksums.put(json.dumps(state)), encoding="utf-8")
        self._drop_others(target)

    def _drop_others(self, kept: Path) -> None:
        """Remove all other checkpoints, including those that a killed process began to remove."""
        for other in self.folder.glob(f"{self.prefix}-step-*"):
            if other != kept and re.search(r"step-\d+$", other.name):
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, learner: Learner) -> tuple[TrainingProgress, dict[str, Tensor] | None] | None:
        """Load the latest checkpoint into the learner, on every rank. A damaged one is set aside instead."""
        folder: Path | None = collectives.broadcast(self._sound() if ranks.is_first() else None)
        if folder is None:
            return None
        state = _read(folder)
        progress = state.progress
        try:
            best = load_file(folder / "best.safetensors") if progress.has_best else None
            weights, optimizer = (load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer"))
            learner.restore(weights, optimizer, state.schedule)
            if best is not None and {name: tensor.shape for name, tensor in best.items()} != {
                name: tensor.shape for name, tensor in weights.items()
            }:
                raise ValueError("the best weights belong to another model")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise UpstreamError(
                f"the checkpoint does not belong to this run: {first_line(error)}",
                where=str(folder),
                next=f"rm -r {folder}; training then starts from the beginning",
            ) from error
        return progress, best

    def _sound(self) -> Path | None:
        """Return the latest checkpoint; set it aside and return None if it is damaged."""
        folder = self.latest()
        if folder is None:
            return None
        try:
            state = _read(folder)
            state.check(_step(folder))
            damaged = [name for name, sha256 in state.files.items() if file_digest(folder / name) != sha256]
        except (OSError, ValueError):
            damaged = ["progress.json"]
        if not damaged:
            self._drop_others(folder)
            return folder
        set_aside = folder.with_name(f"{folder.name}{_DAMAGED}")
        shutil.rmtree(set_aside, ignore_errors=True)
        move(folder, set_aside)
        console.warn(f"{damaged[0]} of a checkpoint is damaged ({set_aside}); training starts from the beginning")
        return None


def _read(folder: Path) -> _SavedState:
    document, _ = checksums.read(limits.read_bytes(folder / "progress.json", 1 << 20), allow_inf_nan=True)
    return _SavedState.model_validate(document)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
