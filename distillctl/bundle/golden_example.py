"""Record one example's answer from every graph when a bundle is built, and repeat it in `bundle verify`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillctl.bundle import text_in
from distillctl.bundle.manifest import GoldenExample, Graph
from distillctl.data.rows import Example as Row
from distillctl.data.view_template import ViewTemplate
from distillctl.data.views import renderers
from distillctl.recipe import Recipe, Shot
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.snippets.reading import Reading

TEXTS = (
    "How much does it cost, and when will it arrive?",
    "Who wrote this, and where does the writer live?",
    "It stopped working yesterday. Please help me.",
    "How much?",
    "Who?",
    "I",
)
"""Candidates for the example. They are not from anyone's data, because bundles are published. Short ones suit small
models."""
TOKENS = 16
"""Largest number of tokens of an answer."""
ALLOWED = 0.05
"""Allowed difference of a logit, as a share of the range of all logits: CPUs round int8 differently."""


def asked(recipe: Recipe, reading: Reading) -> list[tuple[str | None, str]]:
    """Some of `TEXTS` as (input, view), those that need not be cut; where a view takes more than an input, they stand
    as views without an input."""
    pairs = [(text, view) for text, view in _views(recipe, reading.template) if reading.takes(view)]
    return pairs[:3] or [(None, TEXTS[-1])]


def _views(recipe: Recipe, template: ViewTemplate) -> list[tuple[str | None, str]]:
    if template.form == "text":
        return [(text, template.view(text)) for text in TEXTS]
    if template.form == "jinja" and not template.variables:
        constants = template.constants.get("examples", ())
        shots = [Shot(input=shot["input"], answer=shot["answer"], row=shot["row"]) for shot in constants]
        renderer = renderers(recipe, {"simplified": shots})["simplified"]
        return [(text, renderer.render(Row("example", text))) for text in TEXTS]
    return [(None, text) for text in TEXTS]


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def surest(
    reading: Reading, labels: Sequence[str], asked: Sequence[tuple[str | None, str]], max_length: int
) -> GoldenExample:
    """Return the example: the input whose label is clearest to `model.onnx`. asked: inputs with their views."""
    texts, views = zip(*asked, strict=True)
    logits = OnnxClassifier(reading.folder, max_length=max_length).logits(views)
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    at = int(np.argmax(first - second))
    return GoldenExample(
        input=texts[at],
        view=views[at],
        ids=reading.fit(reading.tokenizer.encode(views[at]).ids),
        label=labels[int(logits[at].argmax())],
        logits=logits[at].tolist(),
    )


def label_logits(folder: Path, name: str, graph: Graph, example: GoldenExample, max_length: int) -> np.ndarray:
    """Logits, float32 [K], of one graph of a bundle: of the example's input, or its view, as the graph takes it."""
    if graph.takes == "ids":
        logits: np.ndarray = OnnxClassifier(folder, file=name, max_length=max_length).logits([example.view])[0]
    else:
        logits = text_in.session(folder / name).run(["logits"], {"text": [example.input]})[0][0]
    return logits


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


def written(folder: Path, text: str | None, view: str, suffix: str = ".onnx") -> GoldenExample:
    """Return the example for a model that generates: its answer's first tokens, from the graphs with this suffix."""
    generator = open_generator(folder, suffix=suffix)
    ids = generator.encode(view)
    return GoldenExample(input=text, view=view, ids=ids, answer_ids=generator.generate(ids, TOKENS))


# ── comparison ───────────────────────────────────────────────────────────────────────────────


def difference(example: GoldenExample, labels: Sequence[str], logits: np.ndarray) -> str | None:
    """Return how a graph's logits [K] differ from the recorded ones, or None."""
    recorded = np.array(example.logits, np.float32)
    if logits.shape != recorded.shape or not np.isfinite(logits).all():
        return f"gives logits {logits.tolist()}, {recorded.tolist()} are recorded"
    label = labels[int(logits.argmax())]
    apart, allowed = float(np.abs(logits - recorded).max()), ALLOWED * float(np.ptp(recorded))
    if label == example.label and apart <= allowed:
        return None
    return f"says {label}, a logit {apart:.3g} from what is recorded ({allowed:.3g} allowed; {example.label})"
