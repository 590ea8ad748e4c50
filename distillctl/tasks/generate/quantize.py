"""The held-out rows of a generating student, on which quantize scores smaller graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.data import view_table
from distillctl.data.responses import clean
from distillctl.data.view_table import ViewTable
from distillctl.data.views import CEILING
from distillctl.metrics import context_decided, doubts
from distillctl.metrics import text as text_metrics
from distillctl.quantizers.candidates import Unit
from distillctl.quantizers.search import FP32, Figures
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.onnx_generator import OnnxGenerator, open_generator
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.response_shards import SoftLabelCodec
from distillctl.soft_labels.text import TextLabels
from distillctl.students.load_trained import without_weights
from distillctl.tasks.base import BoundTask
from distillctl.tasks.generate import quantization, text_checks
from distillctl.tasks.generate.facts import Corpus, GenerateQuantize, GenerateTrain, ProbeAnswers
from distillctl.tasks.generate.quantization import GenerateAnswers, TextCalibration
from distillctl.tasks.generate.response_rows import ResponseRows, kept, rows

CALIBRATION_TOKENS = 16_384
"""Tokens of train rows on which activations are measured: several for each column of a small model's matrices."""


class GenerateHeldOut(BoundTask):
    """A `tasks.base.HeldOut`: the eval rows, and the teacher's responses to them in the student's tokens."""

    unit: Unit = "token"

    def __init__(self, recipe: Recipe, workspace: Workspace, views: ViewTable) -> None:
        super().__init__(recipe, workspace)
        self.views, self._train = views, workspace.facts("train", GenerateTrain)
        self.architecture = "encoder_decoder" if self._train.encoder_decoder else "decoder"
        self.metric = text_metrics.metric_name(recipe.generate.score, views.reference)
        self._responses = response_shards.read(workspace, "full", "eval", TextLabels(Text())).text
        codec = kept(recipe, "eval", shared_tokenizer=self._train.shared_tokenizer)
        self._rows = _rows(recipe, workspace, self._train, "eval", codec)
        self._answers: dict[str, GenerateAnswers] = {}
        self._texts: dict[str, list[str]] = {}
        self._metrics: dict[str, Corpus] = {}
        self._probes: dict[str, list[str]] = {}

    def check(self, exported: Path) -> None:
        """Do nothing: the graphs were tried on a text already, and any token is an answer."""

    def calibration(self, exported: Path) -> TextCalibration:
        return TextCalibration(exported, lambda: _some_train_rows(self.recipe, self.workspace, self._train))

    def measure(self, folders: Mapping[str, Path], advance: Callable[[int], None]) -> dict[str, Figures]:
        graphs = {name: open_generator(folder) for name, folder in folders.items()}
        limit, stop = self.recipe.generate.max_new_tokens, self.recipe.generate.stop
        self._answers = quantization.measure(graphs, self._rows, limit, advance)
        self._texts = {
            name: [clean(graphs[name].decode(ids), stop) for ids in answers.ids]
            for name, answers in self._answers.items()
        }
        if self.recipe.task.unscored_inputs:
            probes = view_table.column(self.views_path, "probe", "simplified")
            self._probes = {name: [self._answer(graph, view) for view in probes] for name, graph in graphs.items()}
        task = self.recipe.generate
        against = (self.views.reference, self._responses, task.format)
        self._metrics = {
            name: text_metrics.corpus(task.metrics, texts, *against) for name, texts in self._texts.items()
        }
        return {
            name: self._answers[name].figures(text_metrics.row_scores(task.score, texts, *against))
            for name, texts in self._texts.items()
        }

    def write(self, path: Path, name: str) -> None:
        """Write columns as train does, kl and same_top against the teacher; a KL that is not measured is null."""
        answers, forced = self._answers[name], self._answers[name].forced
        columns = {
            "deployed": pa.array(self._texts[name], pa.string()),
            "deployed_ids": pa.array(answers.ids, pa.list_(pa.int32())),
            "kl": pa.array(forced.kl_teacher, pa.float32(), mask=np.isnan(forced.kl_teacher)),
            "nll": pa.array(forced.nll, pa.float32()),
            "same_top": pa.array(forced.teacher_top, pa.float32()),
        }
        pq.write_table(pa.table({"id": pa.array(self.views.id, pa.string()), **columns}), path)

    def review(self, name: str) -> None:
        doubts.collapse("deployed", self._texts[name], self._responses)
        text_checks.review("deployed", self.views.input, self._texts[name], self._responses)

    def facts(self, name: str) -> GenerateQuantize:
        decided, targets = None, text_metrics.targets(self.views.reference, self._responses)
        if self._train.shared_tokenizer:
            agreements = self._answers[name].forced.agreements
            decided = context_decided.agreement(agreements, response_shards.context_kl(self.workspace))
        return GenerateQuantize(
            context_decided=decided,
            candidate_metrics=self._metrics,
            candidate_checks={
                name: text_checks.check(self.views.input, texts, targets) for name, texts in self._texts.items()
            },
            probes=self._probe_answers(name),
        )

    def _answer(self, graph: OnnxGenerator, view: str) -> str:
        """Return the answer to a view; to a view without any token, no model has one."""
        task, ids = self.recipe.generate, graph.encode(view)
        return clean(graph.decode(graph.generate(ids, task.max_new_tokens)), task.stop) if ids else ""

    def _probe_answers(self, name: str) -> list[ProbeAnswers]:
        if not self._probes:
            return []
        teacher = response_shards.read(self.workspace, CEILING, "probe", TextLabels(Text())).text
        inputs = view_table.column(self.views_path, "probe", "input")
        answers = zip(inputs, teacher, self._probes[FP32], self._probes[name], strict=True)
        return [
            ProbeAnswers(input=text, ceiling=ceiling, student=student, deployed=deployed)
            for text, ceiling, student, deployed in answers
        ]


def _some_train_rows(recipe: Recipe, workspace: Workspace, train: GenerateTrain) -> ResponseRows:
    train_rows = _rows(recipe, workspace, train, "train", TextLabels(Text()))
    enough = int(np.searchsorted(np.cumsum(train_rows.lengths), CALIBRATION_TOKENS))
    return train_rows.take(range(min(max(enough, quantization.TRIAL_ROWS), len(train_rows.views))))


def _rows(
    recipe: Recipe, workspace: Workspace, train: GenerateTrain, split: str, codec: SoftLabelCodec
) -> ResponseRows:
    return rows(
        without_weights(recipe, workspace.folder("train") / "model", train.max_length, train.vocabulary),
        view_table.parts(workspace.folder("collect") / "views.parquet", split, "id", "simplified"),
        response_shards.read_parts(workspace, "full", split, codec),
        codec,
        workspace.folder("quantize"),
        shared_tokenizer=train.shared_tokenizer,
        cut=recipe.contexts.truncate == "input",
    )
