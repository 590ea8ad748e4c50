"""Engines: where labelling runs. They hand tasks to workers, and the stage alone commits what comes back.

A **task** (`worker_pool.ShardTask`) is one shard of work with everything that it needs: the rows of one arm, their
views, and the responses to score. A **worker** (`worker_pool.Worker`) holds a teacher and answers one task at a time,
in any order. Its answer depends on the task alone, so every worker gives the same answer. An **engine** maps workers
over tasks and yields each shard with its answer when it is finished.

To write a worker for another kind of teacher:

- Make it from a `worker_pool.WorkerSpec`, a small picklable value (the teacher's spec, the recipe's task). The engine
  calls ``worker()`` where the worker will run, and the weights are loaded there: see `teachers.labelling.Local`.
- Give it ``label(task)``. For `classify` it returns an object with ``log_probs`` float32 [N, K], ``mass`` float32 [N]
  and ``tokens``, the number of tokens it took; for `generate` a list of (row id, sample, `data.responses.Response`), in
  the task's order.
- Give it a ``reader`` (`worker_pool.TeacherReader`), which the stage calls before any row is answered, without weights.
  Its ``view`` returns one row as the teacher sees it: text and token ids, or only text if a server tokenizes. A task
  then has ``ids`` or ``texts``, whichever the reader's views have.

Nothing here imports torch, and only `ray_engine` imports Ray.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager

from distillctl.errors import UnavailableError
from distillctl.recipe import Collect
from distillctl.teachers import local_engine
from distillctl.teachers.worker_pool import WorkerPool, WorkerSpec


def check_installed(spec: Collect) -> None:
    """Raise UnavailableError if the engine is not installed. Import nothing."""
    if spec.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UnavailableError("Ray is not installed", where="collect.engine", next="pip install 'distillctl[ray]'")


def open_pool(spec: Collect, worker_spec: WorkerSpec) -> AbstractContextManager[WorkerPool]:
    """Start the workers of the recipe's engine; they end with the block."""
    check_installed(spec)
    if spec.engine == "ray":
        from distillctl.teachers import ray_engine  # only now: it takes seconds, and need not be installed

        return ray_engine.open_pool(worker_spec, spec)
    return local_engine.open_pool(worker_spec)
