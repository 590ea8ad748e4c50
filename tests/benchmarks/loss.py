"""make bench-loss: the loss through the language-model head, in chunks on kept tokens, against the plain dense way.

One step is the head's product, the loss and its gradient to hidden states and head. Plain: the teacher's whole
log-probabilities beside whole logits, KL by `torch.nn.functional.kl_div`, backward. Chunked: the same KL on the 32
likeliest tokens and a tail; and, to tell the two ideas apart, chunked on the whole distribution. Each way is a process
of its own, and they take turns step by step, so that whatever else the machine does slows all of them down; a ratio of
times, on the clock or of the processor, is the median over the rounds. Memory is the process's peak above what every
way has to hold before it starts (libraries, head, hidden states): the teacher's labels and the gradients are part of
it. Prints a table, then one JSON object.
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
from distillctl.errors import UnavailableError
from distillctl.losses.chunked_head import chunked, rows_at_once
from distillctl.losses.heads import Head
from distillctl.losses.targets import DenseTargets, Targets, TopKTargets
from distillctl.losses.token_loss import token_loss
from distillctl.recipe import ForwardKL
from distillctl.runtimes.worker import peak_rss_bytes

SHAPES = {"49k": (49_152, 576), "152k": (151_936, 576)}
"""Vocabulary and hidden size: SmolLM2's, and Qwen's vocabulary at the same width."""
POSITIONS, K, THREADS = 1024, 32, 2
ROUNDS = 7
"""Timed steps of each way, after one that is not."""
WAYS = ("plain", "chunked", "chunked_dense")
MIB = 1024**2


def main(rounds: int = ROUNDS) -> None:
    """Measure every shape and way."""
    results = {name: _shape(name, *shape, rounds) for name, shape in SHAPES.items()}
    console.text(f"{POSITIONS} positions, top {K}, {THREADS} threads, medians of {rounds} rounds")
    console.text(f"{'':18}{'peak':>10}{'step':>10}{'peak':>10}{'step':>10}{'CPU':>10}")
    for name, found in results.items():
        for way in WAYS:
            own = found[way]
            console.text(
                f"{name:5}{way:13}{own['peak_bytes'] / MIB:6.0f} MiB{own['seconds']:8.2f} s"
                f"{own['peak_ratio']:10.3f}{own['time_ratio']:10.3f}{own['cpu_ratio']:10.3f}"
            )
    kept = results["152k"]["chunked"]
    figures = {
        "peak_ratio": kept["peak_ratio"],
        "time_ratio": kept["time_ratio"],
        "cpu_ratio": kept["cpu_ratio"],
        "positions": POSITIONS,
        "k": K,
        "threads": THREADS,
        "rounds": rounds,
        "vocabularies": results,
    }
    console.text(json.dumps(figures))


def _shape(name: str, vocabulary: int, width: int, rounds: int) -> dict[str, Any]:
    """Each way's median seconds, peak, and both as shares of the plain way's."""
    runs = {way: _Run(way, vocabulary, width) for way in WAYS}
    steps: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    try:
        for number in range(1 + rounds):
            console.note(f"{name}: round {number} of {rounds}" if number else f"{name}: a first step, not counted")
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                step = runs[way].step()
                if number:
                    steps[way].append(step)
    finally:
        for run in runs.values():
            run.close()
    found: dict[str, Any] = {"vocabulary": vocabulary, "width": width, "chunk": rows_at_once(vocabulary)}
    for way, own in steps.items():
        pairs = list(zip(own, steps["plain"], strict=True))
        ratios = [step["seconds"] / plain["seconds"] for step, plain in pairs]
        found[way] = {
            "peak_bytes": own[-1]["peak_bytes"],
            "seconds": statistics.median(step["seconds"] for step in own),
            "peak_ratio": own[-1]["peak_bytes"] / steps["plain"][-1]["peak_bytes"],
            "time_ratio": statistics.median(ratios),
            "time_ratios": ratios,
            "cpu_ratio": statistics.median(step["cpu_seconds"] / plain["cpu_seconds"] for step, plain in pairs),
            "loss": own[-1]["loss"],
        }
    return found


class _Run:
    """One way in a fresh process, which does a step for each line it is sent."""

    def __init__(self, way: str, vocabulary: int, width: int) -> None:
        self.way = way
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.loss", way, str(vocabulary), str(width)],
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self._answer()  # ready: no other way's step may run while this one's labels are made

    def step(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise UnavailableError(
                f"the process ended with exit code {self._process.wait()}", where=f"bench-loss, {self.way}"
            )
        found: dict[str, float] = json.loads(line)
        return found


def work(way: str, vocabulary: int, width: int) -> None:
    """One way in this process, which has done nothing else: for each line on stdin, after a first object that says it
    is ready, a step's seconds, on the clock and of the processor, its mean loss, and the peak bytes above the start."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.empty(vocabulary, width).normal_(std=width**-0.5))
    hidden = torch.randn(POSITIONS, width, requires_grad=True)
    _rehearse(way)
    before = peak_rss_bytes()
    targets = _targets(way, vocabulary)
    step = _plain if way == "plain" else _chunked
    console.print_json({})
    for _ in sys.stdin:
        weight.grad = hidden.grad = None
        start, cpu = time.perf_counter(), time.process_time()
        loss = step(hidden, weight, targets)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        console.print_json(
            {"seconds": seconds, "cpu_seconds": cpu, "loss": loss / POSITIONS, "peak_bytes": peak_rss_bytes() - before}
        )


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
        work(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()
