"""The held-out rows of a classifier, on which quantize scores smaller graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.data import eval_table, view_table
from distillctl.data.view_table import ViewTable
from distillctl.metrics import doubts
from distillctl.quantizers.candidates import Unit
from distillctl.quantizers.label_calibration import LabelCalibration
from distillctl.quantizers.search import Figures
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import calibrate
from distillctl.tasks.base import BoundTask
from distillctl.tasks.classify import quantization
from distillctl.tasks.classify.facts import ClassifyCollect
from distillctl.tasks.classify.quantization import ClassifyAnswers, EvalRows

CALIBRATION_ROWS = 128
"""Enough train rows to tell a small cost of quantization from none, few enough to measure quickly."""


class ClassifyHeldOut(BoundTask):
    """A `tasks.base.HeldOut`."""

    architecture, metric = "classifier", "accuracy"
    unit: Unit = "label"

    def __init__(self, recipe: Recipe, workspace: Workspace, views: ViewTable) -> None:
        super().__init__(recipe, workspace)
        self.views = views
        self._rows = self._read()
        self._answers: dict[str, ClassifyAnswers] = {}

    def _read(self) -> EvalRows:
        log_prior = self.workspace.facts("collect", ClassifyCollect).log_prior
        teacher = calibrate(label_shards.read(self.workspace, "full", "eval").log_probs, log_prior)
        path = self.workspace.folder("train") / "eval.parquet"
        student = eval_table.log_probs(path, self.views.id, "student", teacher.shape[1])["student"]
        names, truth = self.recipe.task.names, None
        if self.views.has_references:
            truth = np.array([names.index(label) for label in self.views.labels(names)])
        return EvalRows(self.views.simplified, student, teacher, truth)

    def check(self, exported: Path) -> None:
        labels = len(self.recipe.task.names)
        quantization.check_graph(exported, self._rows.texts[0], labels, "distillctl export RECIPE")

    def calibration(self, exported: Path) -> LabelCalibration:
        return LabelCalibration(exported, view_table.read(self.views_path, "train").simplified[:CALIBRATION_ROWS])

    def measure(self, folders: Mapping[str, Path], advance: Callable[[int], None]) -> dict[str, Figures]:
        """Answer one row at a time, as the phone does: dynamic quantization sees the range of its whole batch."""
        graphs = {name: OnnxClassifier(folder) for name, folder in folders.items()}
        self._answers = quantization.measure(graphs, self._rows.texts, advance)
        return {name: answers.figures(self._rows) for name, answers in self._answers.items()}

    def write(self, path: Path, name: str) -> None:
        deployed = pa.array(list(self._answers[name].log_probs), pa.list_(pa.float32()))
        pq.write_table(pa.table({"id": pa.array(self.views.id, pa.string()), "deployed": deployed}), path)

    def review(self, name: str) -> None:
        names = np.array(self.recipe.task.names)
        deployed, teacher = self._answers[name].log_probs, self._rows.teacher
        doubts.collapse("deployed", names[deployed.argmax(-1)].tolist(), names[teacher.argmax(-1)].tolist())

    def facts(self, name: str) -> Facts:
        return Facts()
