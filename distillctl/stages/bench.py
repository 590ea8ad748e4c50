"""bench: latency, memory and size of the teacher and of both graphs, the way a phone would see them."""

from __future__ import annotations

from distillctl import tasks
from distillctl.graphs import sidecar_files
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.bench import BenchSession


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """Time all models on the same eval rows."""
    task = tasks.of(recipe, workspace)
    for stage in ("export", "quantize"):
        sidecar_files.try_out(workspace.folder(stage), task.runtime, f"distillctl {stage} RECIPE --force")
    bench = BenchSession(recipe, workspace)
    timing = task.timing(bench)
    return bench.run(timing.jobs, timing.expected, timing.columns, timing.more, timing.reads)
