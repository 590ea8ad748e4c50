"""One model in a process of its own: ``python -m distillctl.runtimes.worker``; `process` is the other end.

JSON lines. First the job on stdin: ``threads``, ``texts``, and ``runtime``:

- "onnx": ``folder``. Imports neither torch nor transformers, so that the peak memory is what an app would see.
- "torch": ``teacher`` (its recipe section), ``source`` (the fields of a ModelSource), ``answers`` (label words with
  their prefix), ``log_prior`` (or null), ``chat`` (the texts come from a chat template), ``cached``.

The answer says what loading took. Then, until stdin ends, each ``{"start": i, "count": n, "seconds": s or null}`` runs
up to n texts from the i-th on, one at a time, until s seconds are spent (at least one text), and is answered with
``milliseconds`` and ``labels`` (indices), tokenization included, and the peak memory so far.

- ``import_ms``: importing the runtime's libraries, from a started interpreter.
- ``load_ms``: from there to a model that can be asked: tokenizer, weights, session; with a cached prompt also running
  it, which ``context_ms`` tells apart. Finding out which tokens the views share is not counted: a service knows them.
- ``peak_rss_bytes``: of the whole process, interpreter and libraries included.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Query = Callable[[str], int]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    job = json.loads(sys.stdin.readline())
    query, facts = {"onnx": _onnx, "torch": _torch}[job["runtime"]](job)
    answers.write(json.dumps({"pid": os.getpid(), **facts, "peak_rss_bytes": peak_rss_bytes()}) + "\n")
    for line in iter(sys.stdin.readline, ""):
        answers.write(json.dumps(_timed(query, job["texts"], **json.loads(line))) + "\n")


def _timed(query: Query, texts: list[str], start: int, count: int, seconds: float | None) -> dict[str, Any]:
    milliseconds: list[float] = []
    labels: list[int] = []
    for text in texts[start : start + count]:
        began = time.perf_counter_ns()
        labels.append(query(text))
        milliseconds.append((time.perf_counter_ns() - began) / 1e6)
        if seconds is not None and sum(milliseconds) >= 1e3 * seconds:
            break
    return {"milliseconds": milliseconds, "labels": labels, "peak_rss_bytes": peak_rss_bytes()}


def _onnx(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.onnxruntime import OnnxClassifier

    imported = time.perf_counter()
    classifier = OnnxClassifier(Path(job["folder"]), threads=job["threads"])
    ready = time.perf_counter()
    return lambda text: int(classifier.logits([text])[0].argmax()), {
        "import_ms": 1e3 * (imported - began),
        "load_ms": 1e3 * (ready - imported),
    }


def _torch(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    import torch

    from distillctl.recipe import HuggingFaceTeacher, implementation
    from distillctl.references import ModelSource
    from distillctl.runtimes.torch import TeacherClassifier, shared_context

    spec = HuggingFaceTeacher.model_validate(job["teacher"])
    source = job["source"]
    load = implementation(spec)
    imported = time.perf_counter()
    torch.set_num_threads(job["threads"])
    teacher = load(spec, ModelSource(source["reference"], source["path"] and Path(source["path"]), source["revision"]))
    loaded = time.perf_counter()
    context = shared_context(teacher, job["texts"], chat=job["chat"]) if job["cached"] else []
    known = time.perf_counter()
    classifier = TeacherClassifier(teacher, job["answers"], context, job["log_prior"], job["chat"])
    ready = time.perf_counter()
    return classifier.label, {
        "import_ms": 1e3 * (imported - began),
        "load_ms": 1e3 * (loaded - imported + ready - known),
        "context_ms": 1e3 * (ready - known),
        "cached_tokens": len(context),
        "bytes": sum(p.numel() * p.element_size() for p in teacher.model.parameters()),
    }


def peak_rss_bytes() -> int:
    """The most memory this process ever held. Not ru_maxrss on Linux: that starts from the parent's."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
