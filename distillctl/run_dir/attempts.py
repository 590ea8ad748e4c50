"""Keep what a stage attempt before a gate failed, below failed/. It does not count as committed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from distillctl.errors import UpstreamError
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import FAILED, MANIFEST, Manifest, StageOutput, Workspace


def keep(
    workspace: Workspace,
    stage: str,
    *,
    recipe: Mapping[str, object],
    inputs: Mapping[str, str],
    facts: Facts,
    seed: int,
    seconds: float,
) -> None:
    """Write the manifest of a failed attempt, in the form that `Workspace.commit` gives to a finished stage."""
    _folder(workspace).commit(
        stage, recipe=recipe, inputs=inputs, outcome=StageOutput([], facts), seed=seed, seconds=seconds
    )


def forget(workspace: Workspace, stage: str) -> None:
    """Remove the record of a failed attempt, because the stage has been committed since."""
    with contextlib.suppress(OSError):
        folder = _folder(workspace).folder(stage)
        (folder / MANIFEST).unlink()
        folder.rmdir()
        folder.parent.rmdir()


def current(workspace: Workspace, stage: str, recipe: Mapping[str, object]) -> Manifest | None:
    """Return the failed attempt, or None if it is out of date.

    It is current if it was made with this part of the recipe and the present inputs, and the committed stage was not.
    """
    with contextlib.suppress(UpstreamError):
        attempt = _folder(workspace).manifest(stage)
        if attempt is None or attempt.recipe != recipe:
            return None
        upstream = {name: made.fingerprint for name in attempt.inputs if (made := workspace.manifest(name))}
        committed = workspace.manifest(stage)
        if committed and (committed.recipe, committed.inputs) == (attempt.recipe, attempt.inputs):
            return None
        return attempt if upstream == attempt.inputs else None
    return None


def _folder(workspace: Workspace) -> Workspace:
    return Workspace(workspace.root / FAILED)
