"""Time the deployed graph on texts of given lengths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from distillctl import console
from distillctl.errors import UnavailableError
from distillctl.run_dir.bench_facts import LengthTimes
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess

QUERIES, SECONDS = 30, 5.0
"""Limits at each length: number of queries, and seconds."""


def measure(job: Job, lengths: Sequence[int]) -> list[LengthTimes]:
    """Time each length, on texts made from the job's own."""
    tokenizer = Tokenizer.from_file(str(Path(job["folder"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    timings = []
    for length in lengths:
        text = _text(tokenizer, job["texts"], length)
        tokens = len(tokenizer.encode(text).ids)
        with WorkerProcess(f"deployed, {tokens} tokens", {**job, "texts": [text] * (QUERIES + 2)}) as worker:
            try:
                worker.run(0, 2)
                times = [sum(ms) for ms in worker.run(2, QUERIES, SECONDS)["token_ms"]]
            except UnavailableError as problem:
                console.warn(str(problem))
                timings.append(LengthTimes(tokens=tokens, error=problem.what.splitlines()[-1]))
            else:
                timings.append(LengthTimes(tokens=tokens, p50_ms=statistics.median(times), n=len(times)))
    return timings


def _text(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> str:
    """Return a text of at most ``length`` tokens, special ones included, as close to it as whole words allow."""
    words: list[str] = []
    source = [word for text in texts for word in text.split()] or ["a"]
    while len(tokenizer.encode(" ".join(words)).ids) < length:
        words += source[: max(1, length)]
    fits, too_many = 0, len(words) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(tokenizer.encode(" ".join(words[:middle])).ids) <= length:
            fits = middle
        else:
            too_many = middle
    return " ".join(words[: max(1, fits)])
