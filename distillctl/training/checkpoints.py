"""Atomic checkpoints of a training run: everything the next step depends on, and the best weights so far."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillctl import console
from distillctl.workspace import replacing_folder


@dataclass
class Progress:
    """Where a run stands. Lower ``best`` is better."""

    step: int = 0
    best: float = float("inf")
    best_step: int = 0
    looks_without_better: int = 0

    @property
    def has_best(self) -> bool:
        return self.best_step > 0


class Checkpoints:
    """The checkpoints of one run; ``key`` is what the run depends on, others' are not touched but never resumed."""

    def __init__(self, folder: Path, run: str, key: str) -> None:
        self.folder = folder
        self.prefix = f"{run}-{key[:16]}"
        for stale in folder.glob(f"{run}-*"):
            if not stale.name.startswith(self.prefix):
                shutil.rmtree(stale, ignore_errors=True)
        for torn in folder.glob(".*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)

    def latest(self) -> Path | None:
        found = [path for path in self.folder.glob(f"{self.prefix}-step-*") if re.search(r"step-\d+$", path.name)]
        return max(found, default=None, key=lambda path: int(path.name.rpartition("-")[2]))

    def save(self, accelerator: Accelerator, progress: Progress, best: dict[str, Tensor] | None) -> None:
        """Commit a checkpoint, then drop the one before."""
        before = self.latest()
        target = self.folder / f"{self.prefix}-step-{progress.step:06d}"
        with replacing_folder(target) as folder:
            with console.libraries_quiet():
                accelerator.save_state(str(folder), safe_serialization=True)
            if best is not None:
                save_file(best, folder / "best.safetensors")
            (folder / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        if before is not None and before != target:
            shutil.rmtree(before, ignore_errors=True)

    def restore(self, accelerator: Accelerator) -> tuple[Progress, dict[str, Tensor] | None] | None:
        """Load the latest checkpoint into the accelerator's model, optimizer, schedule and generators."""
        folder = self.latest()
        if folder is None:
            return None
        try:
            progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
            best = load_file(folder / "best.safetensors") if progress.has_best else None
            with console.libraries_quiet():
                accelerator.load_state(str(folder))
        except Exception as error:  # whatever a damaged file makes the libraries raise
            console.warn(f"the checkpoint {folder} cannot be read ({error}); training starts anew")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return progress, best
