"""Run MLPerf LoadGen's SingleStream scenario on one model; ``python -m`` starts the worker.

LoadGen issues the next query when the last one is answered, until both ``min_queries`` and ``min_seconds`` are reached,
and says VALID if its rules were kept. A query is a text that it draws; the answer is complete with its last token.
LoadGen also hears of the first token of a generated answer. Its overhead, about 20 µs per query, is included.
https://github.com/mlcommons/inference/tree/master/loadgen
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError
from distillctl.run_dir.bench_facts import LoadgenFacts
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess
from distillctl.runtimes.worker import Query, prepare

SUMMARY, DETAIL = "mlperf_log_summary.txt", "mlperf_log_detail.txt"
MARK = ":::MLLOG "
RULES = {
    "min_seconds": "result_min_duration_met",
    "min_queries": "result_min_queries_met",
    "early_stopping": "early_stopping_met",
}
"""Rule of a valid result → the log's key for it."""
FIRST = "result_first_token_90.00_percentile_latency_ns"
PERCENTILE = 0.9
"""SingleStream's metric; its early-stopping estimate is LoadGen's own."""
WARMUP = 10
"""Queries before the test, which LoadGen does not see."""
SLOWER_THAN_PLANNED = 20
"""A test counts as hanging after this many times ``min_seconds``, plus a second per query."""


def require() -> None:
    """Raise UnavailableError if LoadGen is not installed."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise UnavailableError("MLPerf LoadGen is not installed", next="pip install 'distillctl[loadgen]'")


def measure(name: str, job: Job, *, min_queries: int, min_seconds: float, folder: Path) -> LoadgenFacts:
    """Run the test in a fresh process, leave LoadGen's logs in ``folder``, and return its findings."""
    rules = {"min_queries": min_queries, "min_seconds": min_seconds, "writes": job["runtime"] == "onnx_text"}
    limit = SLOWER_THAN_PLANNED * min_seconds + min_queries
    with WorkerProcess(name, job, module=__name__) as worker:
        totals = worker.ask({**rules, "folder": str(folder)}, limit)
    for extra in folder.iterdir():
        if extra.name not in (SUMMARY, DETAIL):
            extra.unlink()  # empty: logs of accuracy runs, and traces
    return LoadgenFacts(**findings((folder / DETAIL).read_text(encoding="utf-8")), **totals, **rules)


def findings(detail: str) -> dict[str, Any]:
    """Extract the result from LoadGen's detailed log; nanoseconds become milliseconds."""
    results = {
        line["key"]: line["value"]
        for line in (json.loads(text.removeprefix(MARK)) for text in detail.splitlines() if text.startswith(MARK))
    }

    def milliseconds(key: str) -> float | None:
        return results[key] / 1e6 if results.get(key) else None

    return {
        "version": results["loadgen_version"],
        "valid": results["result_validity"] == "VALID",
        "unmet": [rule for rule, key in RULES.items() if not results[key]],
        "queries": results["result_query_count"],
        "p90_ms": milliseconds("result_90.00_percentile_latency_ns"),
        "p50_ms": milliseconds("result_50.00_percentile_latency_ns"),
        "p99_ms": milliseconds("result_99.00_percentile_latency_ns"),
        "mean_ms": milliseconds("result_mean_latency_ns"),
        # if tokens are timed, this key holds the first token's
        "early_stopping_p90_ms": None if FIRST in results else milliseconds("early_stopping_latency_ss"),
        "first_token_p90_ms": milliseconds(FIRST),
    }


# ── the process that is measured ─────────────────────────────────────────────────────────────────


def main() -> None:
    """Read a job like `worker`'s, then lines of rules; run a test for each, and answer when it is over."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    query, facts = prepare(job)
    answers.write(json.dumps(facts) + "\n")
    for line in iter(sys.stdin.readline, ""):
        answers.write(json.dumps(_test(query, job["texts"], **json.loads(line))) + "\n")


def _test(
    query: Query, texts: list[str], *, min_queries: int, min_seconds: float, writes: bool, folder: str
) -> dict[str, Any]:
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
    settings.single_stream_target_latency_percentile = PERCENTILE
    settings.min_query_count, settings.min_duration_ms = min_queries, round(1e3 * min_seconds)
    settings.use_token_latencies = writes
    # LoadGen derives the number of queries it may need from this, and gives up when they run out.
    settings.single_stream_expected_latency_ns = _shortest_ns(query, texts) // 2
    logs = loadgen.LogSettings()
    logs.log_output.outdir, logs.enable_trace = folder, False
    failures: list[BaseException] = []
    began, tokens_in_all = time.perf_counter(), 0

    def issue(samples: list[Any]) -> None:
        nonlocal tokens_in_all
        for sample in samples:
            tokens = 0
            try:
                for _ in query(texts[sample.index]) if not failures else ():
                    tokens += 1
                    if writes and tokens == 1:
                        loadgen.FirstTokenComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])
            except Exception as problem:  # an exception in LoadGen's callback would end the process silently
                failures.append(problem)
            tokens_in_all += tokens
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0, tokens)])

    sut = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(texts), len(texts), lambda samples: None, lambda samples: None)
    # An audit.config in the current folder would change the rules.
    loadgen.StartTestWithLogSettings(sut, library, settings, logs, f"{folder}/no-audit.config")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
    if failures:
        raise failures[0]
    return {"tokens": tokens_in_all, "seconds": time.perf_counter() - began}


def _shortest_ns(query: Query, texts: list[str]) -> int:
    """Return the shortest time of a few queries, which also warm the model up."""
    times = []
    for text in texts[:WARMUP]:
        began = time.perf_counter_ns()
        for _ in query(text):
            pass
        times.append(time.perf_counter_ns() - began)
    return min(times)


if __name__ == "__main__":
    main()
