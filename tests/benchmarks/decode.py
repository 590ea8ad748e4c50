"""make bench-decode: int4 at one thread, token by token, against onnxruntime-genai and llama.cpp as they come.

Ours is the fp32 graph as export writes it, quantized as one of quantize's candidates, in the runtime that both use.
genai is what its own builder makes of the same model at int4, with its own loop. llama.cpp runs the 4-bit GGUF file the
model came from through llama-cpp-python, where that is installed; it is no dependency, and absent its figures are null.
All are loaded in one process, write the same number of tokens after the same prompt, and take turns; a ratio is the
median over the turns. The memory's bandwidth is measured between them, one thread reading a large array. So that no
speed is bought with quality, both ONNX graphs are compared with fp32 on its own answers to real rows. Prints a table,
then one JSON object.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from distillctl import console
from distillctl.recipe import WeightOnly
from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.runtimes.roofline import Memory, bytes_per_run

CANDIDATE = WeightOnly(algorithm="k_quant_mixed", block_size=64, table_bits=4)
"""Of those of 4 bits the one that is nearest to fp32 at genai's size."""
TOKENS, TURNS = 96, 15
PROMPT = "Write a long story about a king who loved a river and the sea, with many details."
ROWS, ANSWER_TOKENS = 24, 40
"""Of the comparison with fp32."""

Write = Callable[[list[int]], Iterator[int]]
"""A prompt's token ids → the answer's, each as soon as it is known."""


def main(recipe_path: Path) -> None:
    """Build the graphs of the recipe's teacher, compare them with fp32, and time them in a process of their own."""
    from tests.benchmarks import decode_graphs  # torch: not in the process that is timed

    with tempfile.TemporaryDirectory() as scratch:
        built = decode_graphs.build(recipe_path, Path(scratch), CANDIDATE)
        console.note("comparing both with fp32")
        quality = decode_graphs.quality(built, ROWS, ANSWER_TOKENS)
        console.note("timing")
        timed = _in_own_process(built.folders["own"], built.folders["genai"], built.gguf)
    own = timed["own"]
    figures: dict[str, Any] = {
        "vs_genai": _ratio(timed, "genai"),
        "vs_llama_cpp": _ratio(timed, "llama_cpp"),
        "bandwidth_share": statistics.median(
            rate * timed["bytes_per_token"] / bandwidth for rate, bandwidth in zip(own, timed["bandwidth"], strict=True)
        ),
        "tokens_per_second": {name: _median(timed[name]) for name in ("own", "genai", "llama_cpp")},
        "bytes_per_token": timed["bytes_per_token"],
        "bandwidth_bytes_per_second": _median(timed["bandwidth"]),
        **quality,
        "candidate": CANDIDATE.name,
        "tokens": TOKENS,
        "turns": TURNS,
        "threads": 1,
    }
    _table(figures)
    console.text(json.dumps(figures))


def _ratio(timed: Mapping[str, Any], other: str) -> float | None:
    """Our tokens per second over theirs: the median of the turns, in each of which they ran side by side."""
    if timed[other] is None:
        return None
    ratios: list[float] = [own / their for own, their in zip(timed["own"], timed[other], strict=True)]
    return statistics.median(ratios)


def _median(values: list[float] | None) -> float | None:
    return None if values is None else statistics.median(values)


def _table(figures: Mapping[str, Any]) -> None:
    console.text(f"{TOKENS} tokens, one thread, medians of {TURNS} turns")
    console.text(f"{'':12}{'tokens/s':>10}{'size':>11}{'KL from fp32':>14}{'same top':>10}")
    for name, rate in figures["tokens_per_second"].items():
        if rate is None:
            console.text(f"{name:12}{'not installed':>15}")
        elif name in figures["kl"]:
            console.text(
                f"{name:12}{rate:10.1f}{figures['bytes'][name] / 1e6:8.1f} MB"
                f"{figures['kl'][name]:14.4f}{figures['same_top'][name]:10.1%}"
            )
        else:
            console.text(f"{name:12}{rate:10.1f}{figures['bytes'][name] / 1e6:8.1f} MB")


# ── the timed process ────────────────────────────────────────────────────────────────────────────


def _in_own_process(own: Path, genai: Path, gguf: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.decode", "--timed", str(own), str(genai)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*command, *([str(gguf)] if gguf else [])], env=env, stdout=subprocess.PIPE, check=True, encoding="utf-8"
    ).stdout
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def measure(own: Path, genai: Path, gguf: Path | None) -> dict[str, Any]:
    """Tokens per second of each way in each turn, the bandwidth beside them, and the bytes our graph reads a token."""
    from distillctl.runtimes.genai import GenaiDecoder

    graph, theirs = OnnxDecoder(own), GenaiDecoder(genai)
    graph.stop_ids = set()
    ways: dict[str, Write] = {
        "own": lambda prompt: graph.stream(prompt, TOKENS),
        "genai": lambda prompt: theirs.stream(prompt, TOKENS),
    }
    if gguf is not None and importlib.util.find_spec("llama_cpp") is not None:
        ways["llama_cpp"] = _llama_cpp(gguf)
    prompt = graph.encode(f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n")
    timed: dict[str, list[float]] = {name: [] for name in (*ways, "bandwidth")}
    memory = Memory()
    for turn in range(-1, TURNS):  # the first is not counted
        names = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        rates = {name: _rate(ways[name], prompt) for name in names}
        rates["bandwidth"] = memory.bytes_per_second()
        if turn >= 0:
            for name, rate in rates.items():
                timed[name].append(rate)
    return {
        "llama_cpp": None,
        **timed,
        "bytes_per_token": bytes_per_run(own) + graph.kv_bytes(len(prompt) + TOKENS // 2),
    }


def _rate(write: Write, prompt: list[int]) -> float:
    """Tokens per second after the first one."""
    times = [time.perf_counter() for _ in islice(write(prompt), TOKENS)]
    return (len(times) - 1) / (times[-1] - times[0])


def _llama_cpp(gguf: Path) -> Write:
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    return lambda prompt: model.generate(prompt, temp=0.0, repeat_penalty=1.0)


if __name__ == "__main__":
    if sys.argv[1] == "--timed":
        folders = [Path(argument) for argument in sys.argv[2:]]
        console.text(json.dumps(measure(folders[0], folders[1], folders[2] if len(folders) > 2 else None)))
    else:
        main(Path(sys.argv[1]))
