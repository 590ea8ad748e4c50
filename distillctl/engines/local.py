"""One worker, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from distillctl.engines.worker_pool import Key, ShardTask, Worker, WorkerPool, WorkerSpec


@contextmanager
def open_pool(description: WorkerSpec) -> Iterator[WorkerPool]:
    """The teacher's weights are loaded for the first task: a row that is refused costs no more than its tokens."""
    yield InProcessPool(description)


class InProcessPool:
    def __init__(self, description: WorkerSpec) -> None:
        self._description = description

    @cached_property
    def reader(self) -> Any:
        return self._description.reader()

    @cached_property
    def _worker(self) -> Worker:
        return self._description.worker()

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """In the tasks' order, one at a time."""
        for key, task in tasks:
            yield key, self._worker.label(task)
