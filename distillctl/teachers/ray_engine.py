"""Run workers on many machines: each is a Ray Data actor with a teacher of its own.

Tasks go into Ray's object store, and an actor takes the next one when it is free. An actor that dies is started again,
there or on another machine, and its task is repeated. Answers come back one per task, in the order in which they
finish. Only this process writes them.

The machines of a cluster need this package, and the teacher under the same name or path.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

# Ray reads these when it is imported or started. Its processes write to log files.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from distillctl import console, interrupts
from distillctl.errors import UnavailableError, UserFacingError, first_line
from distillctl.recipe import Collect
from distillctl.teachers.worker_pool import Key, ShardTask, WorkerPool, WorkerSpec

STORE_BYTES = 2**28
"""Size of the object store of workers on this machine; tasks and answers are small."""

RESTARTS = 20
"""Number of restarts of one actor. Without a limit, an actor whose teacher does not fit would die for ever."""
_DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)


@contextmanager
def open_pool(description: WorkerSpec, spec: Collect) -> Iterator[WorkerPool]:
    """Yield a pool of Ray actors. Ray is started, or connected to, with the first task, and left after the block."""
    with console.libraries_quiet():  # a thread of Ray prints on stdout when workers die
        try:
            yield _Actors(description, spec)
        finally:
            if ray.is_initialized():
                ray.shutdown()


class _Actors:
    def __init__(self, description: WorkerSpec, spec: Collect) -> None:
        self._description = description
        self._spec = spec

    @cached_property
    def reader(self) -> Any:
        return self._description.reader()

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """Yield each task's key and answer as they finish. Raise a worker's UserFacingError here."""
        keys: list[Key] = []
        refs: list[Any] = []
        for key, task in tasks:
            if not keys:
                self._start()
            refs.append(ray.put(pa.table({"number": [len(keys)], "pickled": [pickle.dumps(task)]})))
            keys.append(key)
        if not keys:
            return
        answers = ray.data.from_arrow_refs(refs).map_batches(
            _Labeller,
            fn_constructor_args=(self._description,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(self._spec.workers, len(keys))),
            num_cpus=self._spec.cpus,
            num_gpus=self._spec.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        batches = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        while (batch := _following(batches)) is not None:
            for row in batch.to_pylist():
                answer = pickle.loads(row["pickled"])
                if isinstance(answer, UserFacingError):
                    raise answer
                yield keys[row["number"]], answer

    def _start(self) -> None:
        if ray.is_initialized():
            return
        spec, is_local = self._spec, self._spec.address is None
        options: dict[str, Any] = {"address": spec.address}
        if is_local:
            cpus = max(1, round(spec.workers * spec.cpus + 0.5))
            options = {"address": "local", "num_cpus": cpus, "object_store_memory": STORE_BYTES}
            options["include_dashboard"] = False
        try:
            with _no_stderr():  # Ray's core prints there how much it will log
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray has no more specific error for a machine that is too busy
            key, problem = (
                ("engine", "Ray cannot be started") if is_local else ("address", f"no Ray cluster at {spec.address}")
            )
            raise UnavailableError(f"{problem}: {first_line(error)}", where=f"collect.{key}") from error
        finally:
            interrupts.install()  # Ray has replaced the handler of SIGTERM
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        resources = ray.cluster_resources()
        for name, wanted in (("CPU", spec.cpus), ("GPU", spec.gpus)):
            if resources.get(name, 0) < wanted * spec.workers:
                raise UnavailableError(
                    f"the recipe asks for {spec.workers} workers with {wanted:g} {name}s each, and Ray has "
                    f"{resources.get(name, 0):g} {name}s",
                    where="collect",
                    next="ask for fewer workers, or for less of each",
                )


def _following(batches: Iterator[Any]) -> Any:
    """Return the next answers, or None after the last. Raise UnavailableError if a worker died too often."""
    try:
        return next(batches, None)
    except _DEATHS as error:
        raise UnavailableError(
            f"workers died before they answered: {first_line(error)}",
            where="collect",
            next="give each more memory, or use fewer workers per machine; what was committed is kept",
        ) from error


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Labeller:
    """A Ray actor: one worker, which loads its teacher with the first task."""

    def __init__(self, description: WorkerSpec) -> None:
        self._description = description

    @cached_property
    def _worker(self) -> Any:
        return self._description.worker()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the answer to one task, or the UserFacingError to raise instead."""
        try:
            answer = self._worker.label(pickle.loads(batch["pickled"][0].as_buffer()))
        except UserFacingError as problem:
            answer = problem
        return pa.table({"number": batch["number"], "pickled": [pickle.dumps(answer)]})
