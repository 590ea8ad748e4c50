"""Time the deployed graph on texts of given lengths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from distillctl import console
from distillctl.errors import UnavailableError
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess

QUERIES, SECONDS = 30, 5.0
"""Limits at each length: number of queries, and seconds."""


def measure(job: Job, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """tokens, p50_ms and n for each length; texts are the job's own, one after another. What a graph refuses has an
    ``error`` in place of times."""
    tokenizer = Tokenizer.from_file(str(Path(job["folder"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = []
    for length in lengths:
        text = _text(tokenizer, job["texts"], length)
        tokens = len(tokenizer.encode(text).ids)
        with WorkerProcess(f"deployed, {tokens} tokens", {**job, "texts": [text] * (QUERIES + 2)}) as worker:
            try:
                worker.run(0, 2)
                times = [sum(ms) for ms in worker.run(2, QUERIES, SECONDS)["token_ms"]]
            except UnavailableError as problem:
                console.warn(str(problem))
                found.append({"tokens": tokens, "error": problem.what.splitlines()[-1]})
            else:
                found.append({"tokens": tokens, "p50_ms": statistics.median(times), "n": len(times)})
    return found


def _text(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> str:
    """At most ``length`` tokens, special ones included, and as near to that as whole words allow."""
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
