"""One text through every graph of a bundle: recorded when it is built, asked again by `bundle verify`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillctl.bundle import text_in
from distillctl.bundle.listing import Example, Graph
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnxruntime import OnnxClassifier

TEXTS = (
    "How much does it cost, and when will it arrive?",
    "Who wrote this, and where does the writer live?",
    "It stopped working yesterday. Please help me.",
)
"""No row of anybody's data: a bundle is there to be published."""
TOKENS = 16
"""Of an answer."""
ALLOWED = 0.05
"""Difference of a logit, as a share of the distance between the largest and the smallest: another CPU rounds int8
otherwise."""


def views(input: str, simplified: str) -> list[str]:
    """`TEXTS` in the form of a simplified view, found on a row's input and view; bare where the input is not in it
    once."""
    if not input or simplified.count(input) != 1:
        return [*TEXTS]
    return [simplified.replace(input, text) for text in TEXTS]


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def surest(folder: Path, labels: Sequence[str], texts: Sequence[str], max_length: int) -> Example:
    """The example: of ``texts``, the one whose label is the clearest to `model.onnx`."""
    logits = OnnxClassifier(folder, max_length=max_length).logits(texts)
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    at = int(np.argmax(first - second))
    return Example(
        text=texts[at],
        ids=text_in.cutting_tokenizer(folder, max_length).encode(texts[at]).ids,
        label=labels[int(logits[at].argmax())],
        logits=logits[at].tolist(),
    )


def label_logits(folder: Path, name: str, graph: Graph, texts: Sequence[str], max_length: int) -> np.ndarray:
    """Logits, float32 [N, K], of one graph of a bundle."""
    if graph.takes == "ids":
        return OnnxClassifier(folder, file=name, max_length=max_length).logits(texts)
    opened = text_in.session(folder / name)
    return np.concatenate([opened.run(["logits"], {"text": [text]})[0] for text in texts])


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


def written(folder: Path, text: str, suffix: str = ".onnx") -> Example:
    """The example of a model that writes: its answer's first tokens, by the graphs with this ending."""
    generator = open_generator(folder, suffix=suffix)
    ids = generator.encode(text)
    return Example(text=text, ids=ids, answer_ids=generator.generate(ids, TOKENS))


# ── the same again ───────────────────────────────────────────────────────────────────────────────


def difference(example: Example, labels: Sequence[str], logits: np.ndarray) -> str | None:
    """How a graph's logits [K] differ from the recorded ones, or None."""
    recorded = np.array(example.logits, np.float32)
    if logits.shape != recorded.shape or not np.isfinite(logits).all():
        return f"gives logits {logits.tolist()}, {recorded.tolist()} are recorded"
    label = labels[int(logits.argmax())]
    apart, allowed = float(np.abs(logits - recorded).max()), ALLOWED * float(np.ptp(recorded))
    if label == example.label and apart <= allowed:
        return None
    return f"says {label}, a logit {apart:.3g} from what is recorded ({allowed:.3g} allowed; {example.label})"
