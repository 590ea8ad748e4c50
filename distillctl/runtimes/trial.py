"""Whether a graph that a stranger may have made answers at all, tried in a process with limits before anything runs it.

What the limits allow follows from the files' sizes: a graph that is whole reads its weights some few times for one
short text. Real ones take a tenth of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillctl.errors import UpstreamError
from distillctl.runtimes.process import WorkerFailed, WorkerProcess

TEXT, TOKENS = "I", 2
"""The text to answer, and how many tokens of an answer to wait for."""
_LEAST_BYTES, _COPIES = 1 << 30, 6
"""Memory: of any runtime, and of the weights as they are read, unpacked and put in order."""
_BYTES_PER_SECOND = 20e6
"""Of weights, at the least, in one thread."""
_PATIENCE = 10.0
"""Times the processor time that may pass on a clock, where other programs run too."""


def limits(folder: Path) -> dict[str, Any]:
    """``data_bytes`` and ``cpu_seconds`` of a job (`distillctl.runtimes.worker`) that runs a folder's graphs once."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return {"data_bytes": _LEAST_BYTES + _COPIES * size, "cpu_seconds": size / _BYTES_PER_SECOND}


def patience(job: Mapping[str, Any]) -> float:
    """Return the seconds after which a job within `limits` counts as hanging."""
    return 60.0 + _PATIENCE * float(job["cpu_seconds"])


def check_runs(folder: Path, runtime: str, next: str) -> None:
    """UpstreamError where the graphs of a folder do not answer a short text within `limits`.

    runtime: "onnx" for a classifier, "onnx_text" for a model that writes; next: the command that makes the folder
    anew.
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
