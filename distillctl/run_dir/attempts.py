"""A stage that ended at a gate: what it found is kept below failed/, without counting as committed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from distillctl.errors import UpstreamError
from distillctl.run_dir.workspace import FAILED, MANIFEST, Manifest, StageOutput, Workspace


def keep(
    workspace: Workspace,
    stage: str,
    *,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    facts: Mapping[str, Any],
    seed: int,
    seconds: float,
) -> None:
    """Write the manifest of a failed attempt, as `Workspace.commit` writes one of a stage that is done."""
    _folder(workspace).commit(
        stage, recipe=recipe, inputs=inputs, outcome=StageOutput([], dict(facts)), seed=seed, seconds=seconds
    )


def forget(workspace: Workspace, stage: str) -> None:
    """Remove what is kept of a failed attempt: the stage has been committed since."""
    with contextlib.suppress(OSError):
        folder = _folder(workspace).folder(stage)
        (folder / MANIFEST).unlink()
        folder.rmdir()
        folder.parent.rmdir()


def current(workspace: Workspace, stage: str, recipe: Mapping[str, Any]) -> Manifest | None:
    """The failed attempt, if it was made with this part of the recipe from the inputs that are there now, and nothing
    that was committed answers for the same."""
    with contextlib.suppress(UpstreamError):
        found = _folder(workspace).manifest(stage)
        if found is None or found.recipe != recipe:
            return None
        upstream = {name: made.fingerprint for name in found.inputs if (made := workspace.manifest(name))}
        committed = workspace.manifest(stage)
        if committed and (committed.recipe, committed.inputs) == (found.recipe, found.inputs):
            return None
        return found if upstream == found.inputs else None
    return None


def _folder(workspace: Workspace) -> Workspace:
    return Workspace(workspace.root / FAILED)
