"""Run one worker in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from distillctl.teachers.worker_pool import Key, ShardTask, Worker, WorkerPool, WorkerSpec


@contextmanager
def open_pool(spec: WorkerSpec) -> Iterator[WorkerPool]:
    """Yield a pool of one worker, which loads the teacher's weights with the first task, after bad rows are refused."""
    yield InProcessPool(spec)


class InProcessPool:
    """A `WorkerPool` with one worker, in this process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec

    @cached_property
    def reader(self) -> Any:
        """Return the teacher without its weights."""
        return self._spec.reader()

    @cached_property
    def _worker(self) -> Worker:
        return self._spec.worker()

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """Yield each task's key and answer, one at a time and in order."""
        for key, task in tasks:
            yield key, self._worker.label(task)
