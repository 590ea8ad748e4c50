"""One worker, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from distillctl.engines.tasks import Crew, Description, Key, Task


@contextmanager
def crew(description: Description) -> Iterator[Crew]:
    """The teacher is loaded at once."""
    yield _Alone(description.worker())


class _Alone:
    def __init__(self, worker: Any) -> None:
        self._worker = worker

    @property
    def reader(self) -> Any:
        return self._worker.reader

    def map(self, tasks: Iterable[tuple[Key, Task]]) -> Iterator[tuple[Key, Any]]:
        """In the tasks' order, one at a time."""
        for key, task in tasks:
            yield key, self._worker.label(task)
