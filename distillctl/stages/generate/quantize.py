"""quantize: smaller graphs, on every held-out row; the best inside the recipe's gate is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl import console
from distillctl.data import view_table
from distillctl.data.responses import clean
from distillctl.data.view_table import ViewTable
from distillctl.graphs import sidecar_files
from distillctl.metrics import context_decided, doubts
from distillctl.metrics import text as text_metrics
from distillctl.model_card import generate
from distillctl.quantizers import search, texts
from distillctl.quantizers.search import FP32
from distillctl.quantizers.texts import Answers
from distillctl.recipe import CANDIDATES, Recipe, Text
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder
from distillctl.runtimes import text_folder
from distillctl.runtimes.onnx_generator import OnnxGenerator, open_generator
from distillctl.runtimes.onnxruntime import graph_bytes
from distillctl.snippets.reading import Reading
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.response_shards import Profile, Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.students.load_trained import without_weights
from distillctl.training.response_rows import ResponseRows, kept, rows

CALIBRATION_ROWS = 16
"""Responses of some tokens each, so many that a cost is told from none, and so few that it is soon measured."""


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """None inside the gate: GateFailed with every candidate's figures, and what was committed before stays."""
    collect, train, export = (m.facts for name in ("collect", "train", "export") if (m := workspace.manifest(name)))
    held_out = _HeldOut.read(recipe, workspace, train)
    exported = workspace.folder("export")
    kind = "encoder_decoder" if train["encoder_decoder"] else "decoder"
    checked = sidecar_files.sound(exported, "onnx_text", "distillctl export RECIPE")
    with checked, replacing_folder(workspace.folder("quantize")) as staged:
        with tempfile.TemporaryDirectory(dir=staged) as scratch:
            calibration = texts.TextCalibration(exported, lambda: _some_train_rows(recipe, workspace, train))
            candidates = recipe.quantize.candidates or CANDIDATES[kind]
            budget = recipe.quantize.budget_seconds
            built = search.build(candidates, exported, Path(scratch), calibration, budget)
            graphs = {name: open_generator(path) for name, path in {FP32: exported, **built.folders}.items()}
            with console.progress("score", len(held_out.views.id)) as bar:
                answers = texts.measure(graphs, held_out.rows, recipe.generate.max_new_tokens, bar.advance)
            said = {name: held_out.texts(graphs[name], found) for name, found in answers.items()}
            scores = {name: held_out.score(own) for name, own in said.items()}
            settled = search.settle(
                staged,
                built,
                {name: answers[name].figures(scores[name]) for name in built.folders},
                {"bytes": graph_bytes(exported), "score": scores[FP32], "p50_ms": answers[FP32].p50_ms},
                recipe.quantize,
                "token",
                text_metrics.metric_name(recipe.generate.score, held_out.views.reference),
            )
        chosen = settled.chosen.name
        _write_eval(staged / "eval.parquet", held_out.views.id, said[chosen], answers[chosen])
        doubts.collapse("deployed", said[chosen], held_out.said.text)
        reading, begin = Reading.of(recipe, held_out.views, train, staged), text_folder.begin(staged)
        text = generate.render(recipe, collect, train, reading, settled.shown, export["builder"], begin)
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    decided = None
    if train["shared_tokenizer"]:
        decided = context_decided.agreement(answers[chosen].forced.agreements, response_shards.context_kl(workspace))
    return StageOutput(outputs, {**settled.facts, "context_decided": decided})


@dataclass(frozen=True)
class _HeldOut:
    """The eval rows, the teacher's responses to them, and both in the student's tokens."""

    recipe: Recipe
    views: ViewTable
    said: Responses
    rows: ResponseRows

    @classmethod
    def read(cls, recipe: Recipe, workspace: Workspace, train: Mapping[str, Any]) -> _HeldOut:
        views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
        said = response_shards.read(workspace, "full", "eval", TextLabels(Text()))
        profile = kept(recipe, "eval", shared_tokenizer=train["shared_tokenizer"])
        return cls(recipe, views, said, _rows(recipe, workspace, train, "eval", profile))

    def texts(self, graph: OnnxGenerator, answers: Answers) -> list[str]:
        return [clean(graph.decode(ids), self.recipe.generate.stop) for ids in answers.ids]

    def score(self, said: list[str]) -> float:
        """By the recipe's score, against the references or without them the teacher's answers."""
        task = self.recipe.generate
        against = (self.views.reference, self.said.text, task.format)
        return text_metrics.corpus([task.score], said, *against)[task.score]


def _some_train_rows(recipe: Recipe, workspace: Workspace, train: Mapping[str, Any]) -> ResponseRows:
    found = _rows(recipe, workspace, train, "train", TextLabels(Text()))
    return found.take(range(min(CALIBRATION_ROWS, len(found.views))))


def _rows(recipe: Recipe, workspace: Workspace, train: Mapping[str, Any], split: str, profile: Profile) -> ResponseRows:
    return rows(
        without_weights(recipe, workspace.folder("train") / "model", train),
        view_table.parts(workspace.folder("collect") / "views.parquet", split, "id", "simplified"),
        response_shards.read_parts(workspace, "full", split, profile),
        profile,
        workspace.folder("quantize"),
        shared_tokenizer=train["shared_tokenizer"],
        cut=recipe.contexts.truncate == "input",
    )


def _write_eval(path: Path, ids: list[str], said: list[str], answers: Answers) -> None:
    """As train's, kl and same_top against the teacher; a KL that is not measured is null."""
    forced = answers.forced
    columns = {
        "deployed": pa.array(said, pa.string()),
        "deployed_ids": pa.array(answers.ids, pa.list_(pa.int32())),
        "kl": pa.array(forced.kl_teacher, pa.float32(), mask=np.isnan(forced.kl_teacher)),
        "nll": pa.array(forced.nll, pa.float32()),
        "same_top": pa.array(forced.teacher_top, pa.float32()),
    }
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), **columns}), path)
