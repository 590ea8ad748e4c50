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
"""Candidates for the example: nobody's data, because bundles are published. Short ones suit small models."""
TOKENS = 16
"""Largest number of tokens of an answer."""
ALLOWED = 0.05
"""Allowed difference of a logit, as a share of the range of all logits: CPUs round int8 differently."""


def candidates(recipe: Recipe, reading: Reading) -> list[tuple[str | None, str]]:
    """Return up to three pairs (input, view). Their inputs are the first of `TEXTS` whose views need no cut.

    If a view needs more than an input, the texts are views, without inputs.
    """
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


# ── classify ─────────────────────────────────────────────────────────────────────────────────────


def surest(
    reading: Reading, labels: Sequence[str], candidates: Sequence[tuple[str | None, str]], max_length: int
) -> GoldenExample:
    """Return the example whose label `model.onnx` is surest of. candidates: from `candidates`."""
    texts, views = zip(*candidates, strict=True)
    logits = OnnxClassifier(reading.folder, max_length=max_length).logits(views)
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    row = int(np.argmax(first - second))
    return GoldenExample(
        input=texts[row],
        view=views[row],
        ids=reading.fit(reading.tokenizer.encode(views[row]).ids),
        label=labels[int(logits[row].argmax())],
        logits=logits[row].tolist(),
    )


def label_logits(folder: Path, name: str, graph: Graph, example: GoldenExample, max_length: int) -> np.ndarray:
    """Return a graph's logits, float32 [K], for the example's input or view, whichever the graph takes."""
    if graph.takes == "ids":
        logits: np.ndarray = OnnxClassifier(folder, file=name, max_length=max_length).logits([example.view])[0]
    else:
        logits = text_in.session(folder / name).run(["logits"], {"text": [example.input]})[0][0]
    return logits


# ── generate ─────────────────────────────────────────────────────────────────────────────────────


def written(folder: Path, text: str | None, view: str, suffix: str = ".onnx") -> GoldenExample:
    """Return the example of a generating model: its answer's first tokens, from the graphs with this suffix."""
    generator = open_generator(folder, suffix=suffix)
    ids = generator.encode(view)
    return GoldenExample(input=text, view=view, ids=ids, answer_ids=generator.generate(ids, TOKENS))


# ── comparison ───────────────────────────────────────────────────────────────────────────────


def difference(example: GoldenExample, labels: Sequence[str], logits: np.ndarray) -> str | None:
    """Return how a graph's logits [K] differ from the recorded ones, or None."""
    recorded = np.array(example.logits, np.float32)
    if logits.shape != recorded.shape or not np.isfinite(logits).all():
        return f"gives the logits {logits.tolist()} instead of the recorded {recorded.tolist()}"
    label = labels[int(logits.argmax())]
    distance, allowed = float(np.abs(logits - recorded).max()), ALLOWED * float(np.ptp(recorded))
    if label != example.label:
        return f"answers {label} instead of the recorded {example.label}"
    if distance > allowed:
        return f"has a logit that differs from the recorded one by {distance:.3g} ({allowed:.3g} is allowed)"
    return None
