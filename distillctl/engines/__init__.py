"""Who labels the rows, and where: engines hand tasks to workers; what comes back is committed by the stage alone.

A **task** (`tasks.Task`) is one shard of work and carries all that it needs: which rows of which arm, their views, the
responses that they are given. A **worker** (`tasks.Worker`) holds a teacher and answers tasks one at a time, in any
order; what it answers depends on the task and on nothing that it did before, so another worker's answer is the same.
An **engine** maps workers over tasks and yields each shard with its answer as it is finished. It commits nothing: the
stage is the one writer.

To write a worker for another kind of teacher:

- A worker is made where it will run, from a `tasks.Description`, a small picklable value (the teacher's spec, the
  recipe's task): see `teachers.labelling.Local`. The weights are loaded there.
- Give it ``label(task)``. For labels it returns what has ``log_probs`` float32 [N, K], ``mass`` float32 [N] and the
  number of ``tokens`` it took; for texts a list of (row id, sample, `data.responses.Response`), in the task's order.
- Give it a ``reader`` (`tasks.Reader`): what the stage asks before any row is answered, and without weights. Its
  ``view`` says what one row looks like to the teacher: text and token ids, or text alone where a server does the
  tokenizing. A task then carries ``ids`` or ``texts``, whichever the reader's views have.

Nothing here imports torch, and only `engines.ray` imports Ray.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager

from distillctl.engines import local
from distillctl.engines.worker_pool import Crew, Description
from distillctl.errors import UnavailableError
from distillctl.recipe import Collect


def check(spec: Collect) -> None:
    """UnavailableError when the engine is not installed; nothing is imported."""
    if spec.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UnavailableError("Ray is not installed", where="collect.engine", next="pip install 'distillctl[ray]'")


def crew(spec: Collect, description: Description) -> AbstractContextManager[Crew]:
    """Workers of the recipe's engine; behind the block they are gone."""
    check(spec)
    if spec.engine == "ray":
        from distillctl.engines import ray  # only now: it takes seconds, and need not be installed

        return ray.crew(description, spec)
    return local.crew(description)
