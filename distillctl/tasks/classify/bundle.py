"""The bundle of a classifier: every graph in it is checked against the one that quantize measured."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console
from distillctl.bundle import agreement, code, golden_example, ort_format, readme, text_in
from distillctl.bundle.builder import BundleBuilder
from distillctl.bundle.manifest import FolderFacts, Graph
from distillctl.data.view_table import ViewTable
from distillctl.recipe import Recipe
from distillctl.run_dir.atomic_io import temporary_prefix
from distillctl.run_dir.facts import DataFacts, GraphInputs, StudentFacts
from distillctl.run_dir.workspace import versions
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.snippets.reading import Reading
from distillctl.tasks.classify import card


def fill(recipe: Recipe, draft: BundleBuilder, views: ViewTable) -> FolderFacts:
    """Write the bundle of a classifier, and return the stage's facts.

    Raise GateFailed unless the `.ort` and text-in graphs give the ONNX graph's labels, and the text-in graph the
    tokenizer's ids, on every held-out row.
    """
    folder, labels = draft.folder, recipe.task.names
    train = draft.facts("train", StudentFacts)
    reading = Reading.of(recipe, views, train, folder)
    max_length = train.max_length
    onnx = OnnxClassifier(folder, max_length=max_length).logits(views.simplified)
    logits_of: dict[str, np.ndarray] = {}
    if recipe.bundle.text_in:
        console.note("bundle: the tokenizer into the graph")
        text_in.build(folder, max_length, reading.template)
        logits_of[text_in.FILE] = text_in.check_ids(
            folder, max_length, views.id, _inputs(reading, views), reading.template
        )
    converted = _ort(folder)
    for name in converted:
        logits_of[name] = OnnxClassifier(folder, file=name, max_length=max_length).logits(views.simplified)
    agreed = {
        name: agreement.compare(name, views.id, onnx, logits, recipe.export.max_logit_difference)
        for name, logits in logits_of.items()
    }
    graphs = {name: _graph(name, agreed) for name in ["model.onnx", *converted]}
    if text_in.FILE in logits_of:
        other_ids = tuple(text_in.other_ids(folder, max_length, template=reading.template))
        graphs[text_in.FILE] = _graph(text_in.FILE, agreed).model_copy(update={"other_ids": other_ids})
    (folder / "labels.json").write_text(json.dumps(labels, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    files = ["classify.py", "classify.mjs", "Classifier.kt", "Classifier.swift"]
    code.write(
        folder,
        files + ["classify_text_in.py"] * recipe.bundle.text_in,
        reading,
        name=recipe.name,
        versions=versions(),
        text_in=recipe.bundle.text_in,
        ids_graph=converted[0] if converted else "model.onnx",
        inputs=draft.facts("export", GraphInputs).inputs,
    )
    verdicts = draft.verdicts()
    about = card.description(recipe, draft.facts("collect", DataFacts), train)
    text = readme.classify(recipe, reading, about, draft.files(), graphs, verdicts, draft.figures("label"))
    (folder / "README.md").write_text(text, encoding="utf-8")
    candidates = golden_example.candidates(recipe, reading)
    if text_in.FILE in logits_of:  # all graphs are asked the same, so all have to read the same
        others = text_in.other_ids(folder, max_length, [text for text, _ in candidates if text], reading.template)
        candidates = [(text, view) for text, view in candidates if text not in others] or [
            ("", reading.template.view(""))
        ]
    example = golden_example.surest(reading, labels, candidates, max_length)
    return draft.close(labels, reading, max_length, graphs, example, verdicts)


def _ort(folder: Path) -> list[str]:
    """Convert the graph that takes ids to `.ort`. The text-in graph's operators are listed too, for a build with
    both."""
    inside = folder / text_in.FILE
    if not inside.exists():
        return ort_format.convert(folder)
    prefix = temporary_prefix(folder.parent / "inside")
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=".tmp", dir=folder.parent) as aside:
        moved = inside.rename(Path(aside) / inside.name)
        try:
            return ort_format.convert(folder, listed_too=[moved], library=text_in.library())
        finally:
            moved.rename(inside)


def _inputs(reading: Reading, views: ViewTable) -> list[str]:
    """Return the part of each row's input that its view holds: all of it, unless the end was cut."""
    before, behind = len(reading.template.prefix or ""), len(reading.template.suffix or "")
    return [view[before : len(view) - behind] for view in views.simplified]


def _graph(name: str, agreed: dict[str, dict[str, Any]]) -> Graph:
    inside = name == text_in.FILE
    return Graph(
        takes="text" if inside else "ids",
        format="ort" if name.endswith(".ort") else "onnx",
        libraries=(text_in.EXTENSIONS,) if inside else (),
        against_onnx=agreed.get(name, {}),
    )
