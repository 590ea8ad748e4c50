"""Define what a device runs, and compare its answers with the recorded ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from distillctl.data import eval_table, view_table
from distillctl.errors import RecipeError, UnavailableError
from distillctl.phone.messages import MAX_LABELS, MAX_QUERIES, MAX_ROWS
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.onnxruntime import OnnxClassifier

TOLERANCE = 0.05
"""Allowed difference of a probability from the recorded one. Between ONNX Runtime here and its WebAssembly build, the
demo's fp32 graph does not differ, its int4 and int8 weights differ by 0.016, and its dynamic int8 graphs by at most
0.043, 0.016 at p99 (1,000 rows): they round every activation to one of 256 steps, and the last bit decides which."""
SECONDS = 20.0
"""Time limit for measuring one backend."""
SHOWN = 4
"""Number of inputs that the page shows with their answers."""
MAX_GRAPH_BYTES = 1 << 30
"""Largest graph: WebAssembly addresses 4 GB, and loading holds the graph twice."""


@dataclass(frozen=True)
class PhoneTask:
    """A graph, and held-out rows with their recorded answers."""

    title: str
    graph: Path
    sha256: str
    """SHA-256 of the graph."""
    labels: list[str]
    texts: list[str]
    """The rows' inputs, as the page shows them."""
    feeds: list[dict[str, np.ndarray]]
    """For each row the graph's inputs, int64 [1, T]: the tokens of the simplified view."""
    recorded: np.ndarray
    """Normalised log-probabilities, float32 [N, K]."""

    def describe(self) -> dict[str, Any]:
        """Return the task as JSON for the page."""
        return {
            "title": self.title,
            "labels": self.labels,
            "rows": [{name: value[0].tolist() for name, value in feed.items()} for feed in self.feeds],
            "texts": self.texts[:SHOWN],
            "probabilities": np.exp(self.recorded.astype(np.float64)).tolist(),
            "tolerance": TOLERANCE,
            "queries": MAX_QUERIES,
            "seconds": SECONDS,
            "graph_bytes": self.graph.stat().st_size,
        }

    def check(self, logits: list[list[float]]) -> dict[str, Any]:
        """Compare a device's logits with the recorded answers. Raise ValueError if their shape is wrong.

        ``same``: no probability differs by more than `TOLERANCE`. Then the labels are also the same, except in
        ``ties``, rows whose two best recorded probabilities are so close that rounding may decide between them.
        """
        if len(logits) != len(self.recorded) or any(len(row) != len(self.labels) for row in logits):
            raise ValueError(f"expected logits of {len(self.recorded)} rows and {len(self.labels)} labels")
        probabilities = np.exp(log_softmax(np.array(logits, dtype=np.float64), axis=1))
        recorded = np.exp(self.recorded.astype(np.float64))
        second, best = np.sort(recorded, axis=1)[:, -2:].T
        furthest = float(np.abs(probabilities - recorded).max())
        return {
            "rows": len(probabilities),
            "same_label": int((probabilities.argmax(1) == recorded.argmax(1)).sum()),
            "ties": int((best - second <= 2 * TOLERANCE).sum()),
            "max_probability_difference": furthest,
            "tolerance": TOLERANCE,
            "same": furthest <= TOLERANCE,
        }


def prepare(recipe: Recipe, workspace: Workspace) -> PhoneTask:
    """Load the first rows of bench's sample, with the answers that quantize recorded."""
    if not recipe.task.names:
        raise RecipeError("the page measures models that choose one of several labels", where="task.kind")
    folder = workspace.folder("quantize")
    manifest = workspace.manifest("quantize")
    assert manifest is not None
    size = manifest.outputs["model.onnx"].bytes
    if "model.onnx.data" in manifest.outputs or size > MAX_GRAPH_BYTES:
        raise UnavailableError("the graph is too large for a browser", where=str(folder / "model.onnx"))
    classifier = OnnxClassifier(folder)
    if len(classifier.labels) > MAX_LABELS:
        raise UnavailableError(f"the page takes at most {MAX_LABELS} labels", where="task.labels")
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    sample = np.random.default_rng(recipe.seed).permutation(len(views.id))[:MAX_ROWS].tolist()
    return PhoneTask(
        title=recipe.report.title or recipe.name,
        graph=folder / "model.onnx",
        sha256=manifest.outputs["model.onnx"].sha256,
        labels=classifier.labels,
        texts=[views.input[row] for row in sample],
        feeds=[classifier.feed([views.simplified[row]]) for row in sample],
        recorded=eval_table.read(folder / "eval.parquet", [views.id[row] for row in sample])["deployed"],
    )
