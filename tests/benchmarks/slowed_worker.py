"""A `worker` that is slower than it need be: after each query it spins for ``slowdown`` of what the query took.

``slowdown``: a share, of the job. The tokens come after the spinning, so it counts as part of the first one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distillctl.runtimes import worker
from distillctl.runtimes.worker import Query


def slowed(runtime: Callable[[dict[str, Any]], tuple[Query, dict[str, Any]]]) -> Callable[..., Any]:
    """The runtime, whose queries take longer."""

    def load(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
        query, facts = runtime(job)

        def slow(text: str) -> list[int]:
            began = time.perf_counter()
            answer = list(query(text))
            end = time.perf_counter() + job["slowdown"] * (time.perf_counter() - began)
            while time.perf_counter() < end:
                pass
            return answer

        return slow, facts

    return load


if __name__ == "__main__":
    worker.RUNTIMES.update({name: slowed(runtime) for name, runtime in worker.RUNTIMES.items()})
    worker.main()
