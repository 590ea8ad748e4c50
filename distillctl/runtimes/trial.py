"""Check in a process with limits that a graph from an unknown source answers at all, before anything else runs it.

The limits follow from the files' sizes: a whole graph reads its weights a few times for one short text. Real ones take
a tenth of the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillctl.errors import UpstreamError
from distillctl.runtimes.process import WorkerFailed, WorkerProcess

TEXT, TOKENS = "I", 2
"""The text to answer, and the number of tokens to wait for."""
_LEAST_BYTES, _COPIES = 1 << 30, 6
"""Memory for any runtime, and copies of the weights as they are read, unpacked and reordered."""
_BYTES_PER_SECOND = 20e6
"""Slowest plausible speed of reading weights in one thread."""
_PATIENCE = 10.0
"""Wall time allowed per second of processor time, because other programs run too."""


def limits(folder: Path) -> dict[str, Any]:
    """Return the ``data_bytes`` and ``cpu_seconds`` of a job (`distillctl.runtimes.worker`) that runs a folder's graphs
    once.
    """
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return {"data_bytes": _LEAST_BYTES + _COPIES * size, "cpu_seconds": size / _BYTES_PER_SECOND}


def patience(job: Mapping[str, Any]) -> float:
    """Return the seconds after which a job within `limits` counts as hanging."""
    return 60.0 + _PATIENCE * float(job["cpu_seconds"])


def check_runs(folder: Path, runtime: str, next: str) -> None:
    """Raise UpstreamError if a folder's graphs do not answer a short text within `limits`.

    runtime: "onnx" for a classifier, "onnx_text" for a generating model. next: the command that makes the folder again.
    """
    job = {
        "runtime": runtime,
        "folder": str(folder),
        "threads": 1,
        "texts": [TEXT],
        "limit": TOKENS,
        "answer_tokens": TOKENS,
        **limits(folder),
    }
    try:
        with WorkerProcess("graph", job, load_seconds=patience(job)) as worker:
            worker.ask({"start": 0, "count": 1, "seconds": None}, patience(job))
    except WorkerFailed as error:
        raise UpstreamError(f"the graph does not run: {error.reason}", where=str(folder), next=next) from error
