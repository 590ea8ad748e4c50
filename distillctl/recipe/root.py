"""The whole recipe, and the conditions between its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from distillctl.recipe.base import Count, Section, Seed
from distillctl.recipe.bench import Bench
from distillctl.recipe.bundle import Bundle
from distillctl.recipe.classify import Classify
from distillctl.recipe.collect import Collect
from distillctl.recipe.contexts import Contexts
from distillctl.recipe.data import Data
from distillctl.recipe.export import Export
from distillctl.recipe.generate import Generate, Sampled, Sampling, Text, TopK
from distillctl.recipe.models import Student, Teacher
from distillctl.recipe.quantize import Quantize
from distillctl.recipe.report import Report
from distillctl.recipe.served import OpenAITeacher, unsupported_by_server, with_defaults
from distillctl.recipe.task import Task
from distillctl.recipe.train import Loss, Train


class Recipe(Section):
    """A recipe: one YAML file with every knob."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, examples=["my-recipe"])]
    """Name of the recipe and, unless `--run-dir` says otherwise, of its run directory runs/NAME. Letters, digits, `.`,
    `_` and `-`."""
    seed: Seed = 0
    """Seed of everything that is drawn and has no seed of its own."""
    task: Task
    """The kind of answer: a label or a text."""
    data: Data
    """The rows."""
    contexts: Contexts
    """The text around an input for each model."""
    teacher: Teacher
    """The big model."""
    student: Student
    """The small model."""
    collect: Collect = Collect()
    """The engine that runs the teacher in collect."""
    shard_rows: Count = 128
    """Rows of soft labels that collect commits at a time; a killed run repeats at most this many."""
    train: Train = Train()
    """The student's training."""
    export: Export = Export()
    """The student's ONNX graph."""
    quantize: Quantize = Quantize()
    """The smaller graphs that are built, and the choice among them."""
    bench: Bench = Bench()
    """The measurement of latency and memory."""
    report: Report = Report()
    """The content of the report."""
    bundle: Bundle = Bundle()
    """The content of the bundle for an app."""

    @property
    def train_seed(self) -> int:
        """Return the seed of training."""
        return self.seed if self.train.seed is None else self.train.seed

    @model_validator(mode="before")
    @classmethod
    def _soft_labels_a_server_gives(cls, sections: object) -> Any:
        return with_defaults(sections) if isinstance(sections, dict) else sections

    @model_validator(mode="after")
    def _a_server_gives_it(self) -> Recipe:
        if isinstance(self.teacher, OpenAITeacher) and (
            problem := unsupported_by_server(self.teacher, self.task, self.contexts)
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _losses_have_what_they_need(self) -> Recipe:
        for index, term in enumerate(self.train.loss):
            if problem := _problem_of_loss(self.task, term):
                raise ValueError(f"train.loss[{index}]: {problem}")
        return self

    @model_validator(mode="after")
    def _weights_can_be_known(self) -> Recipe:
        if self.train.weights and (problem := _problem_of_weights(self)):
            raise ValueError(f"train.weights: {problem}")
        return self

    @model_validator(mode="after")
    def _label_map_leads_to_labels(self) -> Recipe:
        names = self.task.names
        if self.data.label_map and not names:
            raise ValueError("data.label_map: it names labels, and this task has none; leave it out")
        if unknown := next((name for name in self.data.label_map.values() if name not in names), None):
            raise ValueError(f"data.label_map: {unknown!r} is no label (labels: {', '.join(names)})")
        return self

    @model_validator(mode="after")
    def _workers_hold_the_teacher(self) -> Recipe:
        if self.collect.engine == "ray" and isinstance(self.teacher, OpenAITeacher):
            raise ValueError(
                "collect.engine: ray starts teachers that run here; a served one is asked from one process"
            )
        return self

    @model_validator(mode="after")
    def _text_in_needs_one_step(self) -> Recipe:
        if self.bundle.text_in and self.task.response_tokens:
            raise ValueError(
                "bundle.text_in: a graph with the tokenizer inside is for task.kind: classify; a model that generates "
                "text needs its tokenizer at every step"
            )
        return self

    @model_validator(mode="after")
    def _fixed_ranges_need_one_step(self) -> Recipe:
        kinds = [candidate.kind for candidate in self.quantize.candidates or ()]
        if "static_int8" in kinds and self.task.response_tokens:
            raise ValueError(
                f"quantize.candidates[{kinds.index('static_int8')}]: static_int8 is for task.kind: classify; a model "
                "that generates text meets values that no train row shows; use weight_only or dynamic_int8"
            )
        return self

    _path: Path = PrivateAttr(default=Path("recipe.yaml"))
    _overrides: tuple[str, ...] = PrivateAttr(default=())

    @property
    def classify(self) -> Classify:
        """Return the task of a recipe that is known to classify."""
        assert isinstance(self.task, Classify)
        return self.task

    @property
    def generate(self) -> Generate:
        """Return the task of a recipe that is known to generate."""
        assert isinstance(self.task, Generate)
        return self.task

    @property
    def overrides(self) -> tuple[str, ...]:
        """Return the --set values with which the recipe was loaded."""
        return self._overrides

    @property
    def path(self) -> Path:
        """Return the file from which the recipe was read."""
        return self._path

    @property
    def folder(self) -> Path:
        """Return the recipe's folder, to which its paths are relative."""
        return self._path.parent


def _problem_of_weights(recipe: Recipe) -> str | None:
    """Say why the tokens' weights cannot be known, or return None."""
    task = recipe.task
    if not isinstance(task, Generate):
        return "labels have no tokens to weigh; leave it out"
    if recipe.train.weights == "entropy":
        bare = isinstance(task.soft_labels, Text)
        return "task.soft_labels: text keeps no distribution, so its entropy is not known" if bare else None
    if isinstance(recipe.teacher, OpenAITeacher):
        return "a served teacher does not say how likely its answers are without the context; use entropy"
    if isinstance(task.responses, Sampling) and task.responses.n > 1:
        return "context_kl is measured for one response a row; use task.responses: greedy, or entropy"
    return None


def _problem_of_loss(task: Task, term: Loss) -> str | None:
    """Say what a loss needs that the stored soft labels lack, or return None."""
    if not isinstance(task, Generate):
        return "uld is for texts; labels are the same on both sides" if term.kind == "uld" else None
    kept = task.soft_labels
    if isinstance(kept, Text) and term.kind != "cross_entropy":
        return f"task.soft_labels: text keeps no distribution for {term.kind}; only cross_entropy is left"
    if isinstance(kept, Sampled) and (term.kind not in ("forward_kl", "cross_entropy") or term.temperature != 1):
        return (
            f"{term.kind} at temperature {term.temperature:g} cannot be had from drawn tokens; with task.soft_labels: "
            "sampled there are forward_kl and cross_entropy at temperature 1"
        )
    if isinstance(kept, TopK) and term.needs_distribution and term.temperature not in (1.0, *kept.temperatures):
        return (
            f"temperature {term.temperature:g} has to stand in task.soft_labels.temperatures: a lumped tail cannot be "
            "re-tempered later"
        )
    return None
