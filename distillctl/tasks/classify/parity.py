"""The graph against the PyTorch model it came from, on real rows: the same tokens through both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import torch
from transformers import PreTrainedModel

from distillctl import console, interrupts
from distillctl.errors import GateFailed
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.tasks.classify.facts import LabelParity

BATCH_SIZES = (1, 2, 5, 8)
"""Taken in turn: alone, as a phone asks, and in batches whose shorter rows are padded."""


def check_parity(
    model: PreTrainedModel, graph: OnnxClassifier, ids: Sequence[str], texts: Sequence[str], allowed: float
) -> LabelParity:
    """Compare the logits of every row, in batches of several shapes. ``allowed``: the largest |Δlogit|.

    Raise GateFailed with the row that is furthest off, or a row whose top label differs though its two highest logits
    are further apart than ``allowed``.
    """
    expected, actual = _logits(model, graph, texts)
    difference = np.abs(expected - actual).max(-1)
    beyond = ~(difference <= allowed)  # NaN is beyond
    if beyond.any():
        worst = int(np.argmax(difference))
        raise GateFailed(
            f"ONNX Runtime and PyTorch differ by {difference[worst]:.3g} in a logit, {allowed:.3g} is allowed "
            f"({beyond.sum()} of {len(ids)} rows are beyond it; this one: {_labels(graph, expected, actual, worst)})",
            where=f"row {ids[worst]}",
            next="if such a difference does not matter to you, raise export.max_logit_difference",
        )
    differs = expected.argmax(-1) != actual.argmax(-1)
    second, first = np.sort(expected, axis=-1)[:, -2:].T
    tied = first - second < allowed
    if (differs & ~tied).any():
        row = int(np.argmax(differs & ~tied))
        raise GateFailed(
            f"the top label differs: {_labels(graph, expected, actual, row)}; PyTorch's two highest logits are "
            f"{first[row] - second[row]:.3g} apart, which is no tie at an allowed difference of {allowed:.3g}",
            where=f"row {ids[row]}",
        )
    return LabelParity(
        max_logit_difference=float(difference.max()),
        same_top=float(1 - differs.mean()),
        ties=int(differs.sum()),
        rows=len(ids),
    )


@torch.inference_mode()
def _logits(model: PreTrainedModel, graph: OnnxClassifier, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return PyTorch's and ONNX Runtime's logits, float32 [N, K] each."""
    model.eval()
    expected, actual = [], []
    with console.progress("parity", len(texts)) as bar:
        for batch in _batches(texts):
            interrupts.raise_if_pending()
            feed = graph.feed(batch)
            tensors = {name: torch.from_numpy(values) for name, values in feed.items()}
            expected.append(model(**tensors).logits.float().numpy())
            actual.append(graph.run(feed))
            bar.advance(len(batch))
    return np.concatenate(expected), np.concatenate(actual)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = 0
    for size in cycle(BATCH_SIZES):
        if start >= len(texts):
            return
        yield texts[start : start + size]
        start += size


def _labels(graph: OnnxClassifier, expected: np.ndarray, actual: np.ndarray, row: int) -> str:
    torch_label, onnx_label = (graph.labels[int(logits[row].argmax())] for logits in (expected, actual))
    return f"PyTorch says {torch_label}, ONNX Runtime {onnx_label}"
