"""Run one model in a process of its own: ``python -m distillctl.runtimes.worker``; `process` is the other end.

Messages are JSON lines. The first one on stdin is the job: ``threads``; ``cpus`` to stay on (default: any);
``data_bytes`` it may take (RLIMIT_DATA: heap and writable private maps, not the files it maps; default: the machine's
memory); ``cpu_seconds`` for all of its work (default: no limit); ``texts``; and ``runtime``:

- "onnx": ``folder`` with a classifier.
- "onnx_text": ``folder`` with a generating model, run by our own loop.
- "genai": the same, run by onnxruntime-genai; ``max_view``: number of tokens at which a view is cut;
  ``begin``: special tokens with which it begins.
- "genai_batch": the same, but each of the ``texts`` is a list of texts that are decoded together; the answer, a list
  of theirs, comes at once.
- "memory": no model; a query reads a large array once and answers with the bytes per second.
- "torch": ``teacher`` (its recipe section), ``source`` (the fields of a ModelSource), ``place`` (the fields of an
  AnswerPlace), ``cached``; ``label_words`` and ``log_prior`` (or null) to classify, ``stop_ids`` to generate.
- "genai_teacher": ``folder`` with the teacher's graph for onnxruntime-genai, always with its prompt cached;
  ``prompted`` and ``vocabulary`` (`teacher_tokens.read`); ``log_prior`` (or null) to classify, ``stop_ids`` to
  generate.

Generating models also need ``limit``, the maximal number of answer tokens, and ``answer_tokens``, the usual number.
"onnx_text" takes ``until``: "limit", to generate that many even if the answer would end earlier. Only "torch" imports
torch and transformers, so that the peak memory of the others is what an app would see.

The first answer has the cost of loading. Then, until stdin ends, each ``{"start": i, "count": n, "seconds": s or
null}`` runs up to n texts from the i-th on, one at a time, until s seconds are spent (at least one text). Its answer
has the peak memory so far and, per text, ``answers``: its tokens, or its label's index as the only one; and
``token_ms``: the time of each, the first one since the text came in, tokenization included. Detokenization is not
counted.

- ``import_ms``: importing the runtime's libraries, from a started interpreter.
- ``load_ms``: from there to a model that can answer: tokenizer, weights, session, and running a cached prompt, which
  ``context_ms`` also gives alone. Finding the tokens that the views share is not counted: a service knows them.
- ``peak_rss_bytes``: of the whole process, interpreter and libraries included. ``anonymous_bytes``, ``mapped_bytes``:
  its present memory: its own, and of files that could be read again (Linux).
- ``view_tokens`` (generate): number of tokens run before the first one of the answer, per text. ``kv_bytes``
  (generate): keys and values of the mean view and of ``answer_tokens``.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from distillctl.runtimes import confined

Query = Callable[[Any], Iterable[Any]]
"""Text → its answer, token by token; for "genai_batch" texts → their answers."""


class GenerativeModel(Protocol):
    """A model that answers with tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens to run before the first one of the answer."""

    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the token ids of the answer to a view, one by one."""

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values after ``length`` tokens, of view and answer together."""


def main() -> None:
    """Load one model and answer timing requests, one JSON line each, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # libraries may print to stdout, where only answers belong
    job = json.loads(sys.stdin.readline())
    query, facts = prepare(job)
    answers.write(json.dumps({"pid": os.getpid(), **facts, **memory()}) + "\n")
    for line in iter(sys.stdin.readline, ""):
        answers.write(json.dumps(_timed(query, job["texts"], **json.loads(line))) + "\n")


def prepare(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    """Load the job's model within the job's limits, and return it with the cost of loading."""
    if job.get("cpus"):
        os.sched_setaffinity(0, job["cpus"])
    confined.limit(job.get("data_bytes"), job.get("cpu_seconds"))
    query, facts = RUNTIMES[job["runtime"]](job)
    return query, facts | {"cpus": job.get("cpus")}


def _timed(query: Query, texts: list[str], start: int, count: int, seconds: float | None) -> dict[str, Any]:
    answers: list[list[int]] = []
    token_ms: list[list[float]] = []
    spent, cpu_began = 0.0, time.process_time()
    for text in texts[start : start + count]:
        answer, at = [], [time.perf_counter_ns()]
        for token in query(text):
            at.append(time.perf_counter_ns())
            answer.append(token)
        answers.append(answer)
        token_ms.append([(after - before) / 1e6 for before, after in itertools.pairwise(at)])
        spent += sum(token_ms[-1]) / 1e3
        if seconds is not None and spent >= seconds:
            break
    cpu_ms = 1e3 * (time.process_time() - cpu_began)
    return {"answers": answers, "token_ms": token_ms, "cpu_ms": cpu_ms, **memory()}


def _onnx(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.onnxruntime import OnnxClassifier

    imported = time.perf_counter()
    classifier = OnnxClassifier(Path(job["folder"]), threads=job["threads"])
    loading = _loading(began, imported, time.perf_counter())
    return lambda text: [int(classifier.logits([text])[0].argmax())], loading


def _onnx_text(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.onnx_generator import open_generator

    imported = time.perf_counter()
    model = open_generator(Path(job["folder"]), threads=job["threads"])
    if job.get("until") == "limit":
        model.stop_ids = set()
    return _generation(job, model, _loading(began, imported, time.perf_counter()))


def _genai(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.genai import GenaiDecoder

    imported = time.perf_counter()
    model = GenaiDecoder(Path(job["folder"]), job["threads"], job["max_view"], job["begin"])
    return _generation(job, model, _loading(began, imported, time.perf_counter()))


def _genai_batch(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.genai import GenaiDecoder

    imported = time.perf_counter()
    model = GenaiDecoder(Path(job["folder"]), job["threads"], job["max_view"], job["begin"])
    return (
        lambda texts: [model.generate_together([model.encode(text) for text in texts], job["limit"])],
        _loading(began, imported, time.perf_counter()),
    )


def _torch(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    import torch

    from distillctl.data.answer_place import AnswerPlace
    from distillctl.models.model_source import ModelSource
    from distillctl.recipe import HuggingFaceTeacher
    from distillctl.runtimes.torch import TeacherClassifier, TeacherGenerator, shared_context
    from distillctl.teachers import huggingface

    spec = HuggingFaceTeacher.model_validate(job["teacher"])
    source = job["source"]
    imported = time.perf_counter()
    torch.set_num_threads(job["threads"])
    path = source["path"] and Path(source["path"])
    teacher = huggingface.load(spec, ModelSource(source["reference"], path, source["revision"]))
    loaded = time.perf_counter()
    place = AnswerPlace(**job["place"])
    context = shared_context(teacher, job["texts"], place) if job["cached"] else []
    known = time.perf_counter()
    model: TeacherClassifier | TeacherGenerator
    if "label_words" in job:
        model = TeacherClassifier(teacher, job["label_words"], place, context, job["log_prior"])
    else:
        model = TeacherGenerator(teacher, job["stop_ids"], place, context)
    ready = time.perf_counter()
    facts = {
        "import_ms": 1e3 * (imported - began),
        "load_ms": 1e3 * (loaded - imported + ready - known),
        "context_ms": 1e3 * (ready - known),
        "cached_tokens": len(context),
        "bytes": sum(p.numel() * p.element_size() for p in teacher.model.parameters()),
    }
    if isinstance(model, TeacherGenerator):
        return _generation(job, model, facts)
    return lambda text: [model.label(text)], facts


def _genai_teacher(job: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    began = time.perf_counter()
    from distillctl.runtimes.genai_teacher import GenaiTeacherClassifier, GenaiTeacherGenerator, Prompted

    imported = time.perf_counter()
    folder, threads, prompted = Path(job["folder"]), job["threads"], Prompted(**job["prompted"])
    model: GenaiTeacherClassifier | GenaiTeacherGenerator
    if "stop_ids" in job:
        model = GenaiTeacherGenerator(folder, threads, prompted, job["stop_ids"], job["limit"])
    else:
        model = GenaiTeacherClassifier(folder, threads, prompted, job["vocabulary"], job["log_prior"])
    loaded = time.perf_counter()
    model.read_prompt()
    ready = time.perf_counter()
    facts = _loading(began, imported, ready) | {
        "context_ms": 1e3 * (ready - loaded),
        "cached_tokens": len(prompted.context),
    }
    if isinstance(model, GenaiTeacherGenerator):
        return _generation(job, model, facts)
    return lambda text: [model.label(text)], facts


def _memory(job: dict[str, object]) -> tuple[Query, dict[str, Any]]:
    from distillctl.runtimes.roofline import Memory

    array = Memory()
    return lambda text: [round(array.bytes_per_second())], {}


RUNTIMES = {
    "memory": _memory,
    "onnx": _onnx,
    "onnx_text": _onnx_text,
    "genai": _genai,
    "genai_batch": _genai_batch,
    "torch": _torch,
    "genai_teacher": _genai_teacher,
}


def _loading(began: float, imported: float, ready: float) -> dict[str, Any]:
    return {"import_ms": 1e3 * (imported - began), "load_ms": 1e3 * (ready - imported)}


def _generation(job: dict[str, Any], model: GenerativeModel, loading: dict[str, Any]) -> tuple[Query, dict[str, Any]]:
    lengths = [len(model.encode(text)) for text in job["texts"]]
    whole = round(statistics.mean(lengths) + loading.get("cached_tokens", 0) + job["answer_tokens"])
    facts = {**loading, "view_tokens": lengths, "kv_bytes": model.kv_bytes(whole)}
    return lambda text: model.stream(model.encode(text), job["limit"]), facts


def memory() -> dict[str, int | None]:
    """Return the peak memory, and the two kinds of memory held now."""
    now = _status("RssAnon", "RssFile")
    return {"peak_rss_bytes": peak_rss_bytes(), "anonymous_bytes": now[0], "mapped_bytes": now[1]}


def peak_rss_bytes() -> int:
    """Return the peak memory of this process. Linux's ru_maxrss would start from the parent's."""
    [peak] = _status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(*names: str) -> list[int | None]:
    """Return values of /proc/self/status in bytes; None if there is no such file or line."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {line.split(":")[0]: line.split() for line in lines}
    return [1024 * int(fields[name][1]) if name in fields else None for name in names]


if __name__ == "__main__":
    main()
