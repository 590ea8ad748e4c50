"""quantize: smaller graphs, scored on every held-out row; the best inside the recipe's gate is kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl import console
from distillctl.data import eval_table, view_table
from distillctl.data.view_table import ViewTable
from distillctl.graphs import sidecar_files
from distillctl.metrics import doubts
from distillctl.model_card import frame
from distillctl.quantizers import labels, search
from distillctl.quantizers.labels import Answers, HeldOut
from distillctl.quantizers.search import FP32
from distillctl.recipe import CANDIDATES, Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from distillctl.snippets.reading import Reading
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import calibrate

CALIBRATION_ROWS = 128


def run(recipe: Recipe, workspace: Workspace) -> StageOutput:
    """None inside the gate: GateFailed with every candidate's figures, and what was committed before stays."""
    collect, train = (m.facts for name in ("collect", "train") if (m := workspace.manifest(name)))
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    rows = _held_out(recipe, workspace, views, collect["log_prior"])
    exported = workspace.folder("export")
    again = "distillctl export RECIPE"
    with sidecar_files.sound(exported, "onnx", again), replacing_folder(workspace.folder("quantize")) as staged:
        labels.check(exported, rows.texts[0], len(recipe.task.names), again)
        with tempfile.TemporaryDirectory(dir=staged) as scratch:
            calibration = labels.LabelCalibration(exported, _calibration_texts(workspace))
            candidates = recipe.quantize.candidates or CANDIDATES["labels"]
            budget = recipe.quantize.budget_seconds
            built = search.build(candidates, exported, Path(scratch), calibration, budget)
            # Single thread, one row at a time, as the phone runs it: dynamic quantization sees its whole batch's range.
            graphs = {name: OnnxClassifier(path) for name, path in {FP32: exported, **built.folders}.items()}
            with console.progress("score", len(rows.texts)) as bar:
                answers = labels.measure(graphs, rows.texts, bar.advance)
            found = {name: one.figures(rows) for name, one in answers.items()}
            settled = search.settle(
                staged,
                built,
                found,
                {
                    "bytes": graph_bytes(exported),
                    "score": rows.score(rows.student),
                    "p50_ms": found[FP32].p50_ms,
                },
                recipe.quantize,
                "label",
                "accuracy",
            )
        deployed = answers[settled.chosen.name]
        _write_eval(staged / "eval.parquet", views.id, deployed)
        names = np.array(recipe.task.names)
        doubts.collapse("deployed", *(names[one.argmax(-1)].tolist() for one in (deployed.log_probs, rows.teacher)))
        reading = Reading.of(recipe, views, train, staged)
        text = frame.render(recipe, collect, train, reading, settled.shown)
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    return StageOutput(outputs, settled.facts)


def _held_out(recipe: Recipe, workspace: Workspace, views: ViewTable, log_prior: list[float] | None) -> HeldOut:
    teacher = calibrate(label_shards.read(workspace, "full", "eval").log_probs, log_prior)
    path = workspace.folder("train") / "eval.parquet"
    student = eval_table.log_probs(path, views.id, "student", teacher.shape[1])["student"]
    truth = None
    if views.has_references:
        truth = np.array([recipe.task.names.index(label) for label in views.labels(recipe.task.names)])
    return HeldOut(views.simplified, student, teacher, truth)


def _calibration_texts(workspace: Workspace) -> list[str]:
    """Of train rows, so many that a cost is told from none, and so few that it is soon measured."""
    return view_table.read(workspace.folder("collect") / "views.parquet", "train").simplified[:CALIBRATION_ROWS]


def _write_eval(path: Path, ids: list[str], answers: Answers) -> None:
    deployed = pa.array(list(answers.log_probs), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "deployed": deployed}), path)
