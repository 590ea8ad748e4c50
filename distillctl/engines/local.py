"""One worker, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from distillctl.engines.worker_pool import Crew, Description, Key, Task, Worker


@contextmanager
def crew(description: Description) -> Iterator[Crew]:
    """The teacher's weights are loaded for the first task: a row that is refused costs no more than its tokens."""
    yield _Alone(description)


class _Alone:
    def __init__(self, description: Description) -> None:
        self._description = description

    @cached_property
    def reader(self) -> Any:
        return self._description.reader()

    @cached_property
    def _worker(self) -> Worker:
        return self._description.worker()

    def map(self, tasks: Iterable[tuple[Key, Task]]) -> Iterator[tuple[Key, Any]]:
        """In the tasks' order, one at a time."""
        for key, task in tasks:
            yield key, self._worker.label(task)
