"""make bench-loss: the loss through the language-model head, in chunks on kept tokens, against the plain dense way.

One step is the head's product, the loss and its gradient to hidden states and head. Plain: the teacher's whole
log-probabilities beside whole logits, KL by `torch.nn.functional.kl_div`, backward. Chunked: the same KL on the 32
likeliest tokens and a tail; and, to tell the two ideas apart, chunked on the whole distribution. Every measurement is a
fresh process, the ways take turns, and medians count. Memory is the process's peak above what every way has to hold
before it starts (libraries, head, hidden states): the teacher's labels and the gradients are part of it. Prints a
table, then one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distillctl import console
from distillctl.losses.chunked_head import chunked, rows_at_once
from distillctl.losses.heads import Head
from distillctl.losses.targets import DenseTargets, Targets, TopKTargets
from distillctl.losses.token_loss import token_loss
from distillctl.recipe import ForwardKL
from distillctl.runtimes.worker import peak_rss_bytes

SHAPES = {"49k": (49_152, 576), "152k": (151_936, 576)}
"""Vocabulary and hidden size: SmolLM2's, and Qwen's vocabulary at the same width."""
POSITIONS, K, THREADS = 1024, 32, 2
ROUNDS, STEPS = 5, 3
"""Processes of each way; timed steps in each, after one that is not."""
WAYS = ("plain", "chunked", "chunked_dense")
MIB = 1024**2


def main(rounds: int = ROUNDS) -> None:
    """Measure every shape and way."""
    results = {name: _shape(name, *shape, rounds) for name, shape in SHAPES.items()}
    console.text(f"{POSITIONS} positions, top {K}, {THREADS} threads, medians of {rounds} processes")
    console.text(f"{'':18}{'peak':>10}{'step':>10}{'peak':>10}{'step':>10}")
    for name, found in results.items():
        for way in WAYS:
            own, plain = found[way], found["plain"]
            console.text(
                f"{name:5}{way:13}{own['peak_bytes'] / MIB:6.0f} MiB{own['seconds']:8.2f} s"
                f"{own['peak_bytes'] / plain['peak_bytes']:10.3f}{own['seconds'] / plain['seconds']:10.3f}"
            )
    plain, own = results["152k"]["plain"], results["152k"]["chunked"]
    figures = {
        "peak_ratio": own["peak_bytes"] / plain["peak_bytes"],
        "time_ratio": own["seconds"] / plain["seconds"],
        "positions": POSITIONS,
        "k": K,
        "threads": THREADS,
        "vocabularies": results,
    }
    console.text(json.dumps(figures))


def _shape(name: str, vocabulary: int, width: int, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        console.note(f"{name}: round {number + 1} of {rounds}")
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            runs[way].append(_process(way, vocabulary, width))
    found: dict[str, Any] = {"vocabulary": vocabulary, "width": width, "chunk": rows_at_once(vocabulary)}
    for way, own in runs.items():
        found[way] = {key: statistics.median(run[key] for run in own) for key in ("peak_bytes", "seconds", "loss")}
    return found


def _process(way: str, vocabulary: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-P", "-m", "distillctl.benchmarks.loss", way, str(vocabulary), str(width)]
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    answer = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    found: dict[str, float] = json.loads(answer)
    return found


def measure(way: str, vocabulary: int, width: int) -> dict[str, float]:
    """One way in this process, which has done nothing else: peak bytes above the start, seconds a step, mean loss."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.empty(vocabulary, width).normal_(std=width**-0.5))
    hidden = torch.randn(POSITIONS, width, requires_grad=True)
    _rehearse(way)
    before = peak_rss_bytes()
    targets = _targets(way, vocabulary)
    step = _plain if way == "plain" else _chunked
    seconds, loss = [], 0.0
    for _ in range(1 + STEPS):
        weight.grad = hidden.grad = None
        start = time.perf_counter()
        loss = step(hidden, weight, targets)
        seconds.append(time.perf_counter() - start)
    return {
        "peak_bytes": peak_rss_bytes() - before,
        "seconds": statistics.median(seconds[1:]),
        "loss": loss / POSITIONS,
    }


def _plain(hidden: Tensor, weight: nn.Parameter, targets: Targets) -> float:
    assert isinstance(targets, DenseTargets)
    log_probs = nn.functional.linear(hidden, weight).log_softmax(-1)
    loss = nn.functional.kl_div(log_probs, targets.log_probs, reduction="sum", log_target=True)
    loss.backward()
    return loss.item()


def _chunked(hidden: Tensor, weight: nn.Parameter, targets: Targets) -> float:
    loss, _ = chunked(hidden, Head(weight), lambda logits, at: token_loss((ForwardKL(),), targets.rows(at), logits))
    loss.backward()
    return loss.item()


def _rehearse(way: str) -> None:
    """A small step: code that is loaded and buffers that are made only once belong to no way."""
    step: Callable[[Tensor, nn.Parameter, Targets], float] = _plain if way == "plain" else _chunked
    step(torch.randn(POSITIONS, 8, requires_grad=True), nn.Parameter(torch.randn(2 * K, 8)), _targets(way, 2 * K))


def _targets(way: str, vocabulary: int) -> Targets:
    """A random teacher's labels; row by row, so that making them takes no more memory than they do."""
    generator, token_ids = torch.Generator().manual_seed(1), torch.zeros(POSITIONS, dtype=torch.int64)
    rows = (torch.randn(vocabulary, generator=generator).mul_(3).log_softmax(-1) for _ in range(POSITIONS))
    if way != "chunked":
        log_probs = torch.empty(POSITIONS, vocabulary)
        for row, values in zip(log_probs, rows, strict=True):
            row.copy_(values)
        return DenseTargets(token_ids, log_probs)
    ids, head = torch.empty(POSITIONS, K, dtype=torch.int64), torch.empty(POSITIONS, K)
    log_tail = torch.empty(POSITIONS)
    for position, values in enumerate(rows):
        head[position], ids[position] = values.topk(K)
        log_tail[position] = values.scatter_(-1, ids[position], -torch.inf).logsumexp(-1)
    return TopKTargets(token_ids, ids, head, log_tail, {})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        console.text(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        main()
