"""The interface of a task kind: one object per stage, and a `Task` that makes them.

A kind is a folder below `tasks/` and a section of the recipe whose ``target`` names its `Task`. Each method imports
what its stage needs only when it is called, so that a stage never pays for another one's libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from distillctl.data import view_table
from distillctl.data.view_table import ViewTable
from distillctl.recipe import LossTerm, Recipe
from distillctl.run_dir.facts import ArmFacts, Distance, Facts
from distillctl.run_dir.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from distillctl.bundle.builder import BundleBuilder
    from distillctl.bundle.manifest import FolderFacts
    from distillctl.data.rows import Dataset, Example
    from distillctl.quantizers.candidates import Unit
    from distillctl.quantizers.search import Figures
    from distillctl.quantizers.sensitivity import Calibration
    from distillctl.run_dir.facts import GraphFacts
    from distillctl.runtimes.bench import Answers, BenchSession
    from distillctl.runtimes.interleaved import ProcessRun
    from distillctl.runtimes.roofline import Reads
    from distillctl.soft_labels.shards import Shard
    from distillctl.students.student import Student
    from distillctl.teachers.arms import Arm
    from distillctl.teachers.worker_pool import AnswerRequest, TeacherReader
    from distillctl.teachers.worker_pool import ShardTask as LabelRequest
    from distillctl.training.loop import TrainingObjective

RowsT = TypeVar("RowsT")
TrainedT = TypeVar("TrainedT", bound="Trained")


class Task(Protocol):
    """A task kind at work on one recipe and run directory."""

    runtime: ClassVar[str]
    """The name by which `runtimes.worker` runs this kind's graphs."""
    report_part: ClassVar[type[KindReport]]
    """The part of the report that only this kind has."""

    def requests(self, reader: TeacherReader) -> Callable[[str, str, Example], AnswerRequest]:
        """Return a function from arm, split and example to what the teacher is asked about that view."""

    def collection(self, reader: object, dataset: Dataset, arms: Sequence[Arm], fingerprint: str) -> Collection:
        """Return what collect labels and stores. reader, fingerprint: of the teacher."""

    def training(self) -> Training[Any, Any]:
        """Return what train learns from and reports."""

    def export(self, model: Path, staged: Path, views: ViewTable) -> Exported:
        """Write the graphs of the student in ``model`` to ``staged``. GateFailed unless they agree with PyTorch."""

    def held_out(self, views: ViewTable) -> HeldOut:
        """Return what quantize scores smaller graphs on."""

    def timing(self, bench: BenchSession) -> Timing:
        """Return which models bench times, and the answers that are on record for them."""

    def paired_job(self) -> tuple[dict[str, Any], str]:
        """Return a query as bench --against times it: keys of a `runtimes.worker` job, and what is timed, in words."""

    def check_bundle(self) -> None:
        """Raise UnavailableError where something that the bundle needs is not installed."""

    def fill_bundle(self, draft: BundleBuilder, views: ViewTable) -> FolderFacts:
        """Write what this kind adds to a bundle that holds quantize's files. Returns the stage's facts."""

    def card(self, folder: Path, views: ViewTable, figures: Sequence[Mapping[str, str]], builder: str) -> str:
        """Return README.md for the graphs in ``folder``. figures: one row per graph, column → value as shown."""

    def compare(self, views: ViewTable, *, deployed: bool) -> tuple[dict[str, np.ndarray], KindReport]:
        """Return each arm's score per held-out row, float64 [N], and this kind's own part of the report.

        deployed: whether quantize chose a graph; otherwise the student stands in for it.
        """


# ── collect ──────────────────────────────────────────────────────────────────────────────────────


class Collection(Protocol):
    """The labels that collect gathers, shard by shard, and the findings they lead to."""

    @property
    def rounds(self) -> Sequence[Sequence[Shard]]:
        """Return all shards. Those of a later round are labelled when the earlier rounds are committed."""

    def present(self, shard: Shard) -> bool:
        """Tell whether the shard is stored already, whole."""

    def request(self, shard: Shard) -> LabelRequest:
        """Return what the teacher is asked about the shard's rows."""

    def commit(self, shard: Shard, labels: object) -> int:
        """Store the teacher's answer. Returns the number of tokens that it took."""

    def teacher_facts(self) -> Facts:
        """Return what only this kind records about the teacher."""

    def findings(self) -> Findings:
        """Return what the labels show, once all of them are stored."""


@dataclass(frozen=True)
class Findings:
    """The facts that collect records about the labels."""

    arms: ArmFacts
    facts: Facts
    """The facts that only this kind records."""
    kept: Mapping[str, np.ndarray] | None = None
    """Split → bool [N], the rows that count. None stands for all of them."""
    outputs: Sequence[str] = ()
    """Files other than the views and the shards."""


# ── train ────────────────────────────────────────────────────────────────────────────────────────


class Trained(Protocol):
    """The student's answers to the held-out rows, with its best weights."""

    @property
    def figures(self) -> Distance:
        """Return KL, agreement and what else compares the student with a control."""


class Training(Protocol, Generic[RowsT, TrainedT]):
    """The training of one kind. RowsT: a split's rows; TrainedT: the result of a training run."""

    def student(self) -> Student:
        """Return the student as it is before training."""

    def rows(self, student: Student) -> tuple[Student, dict[str, RowsT]]:
        """Return the rows of both splits in the student's tokens, and the student fitted to them."""

    def examples(self, rows: RowsT) -> Iterable[Any]:
        """Return the example that each row belongs to: rows of one example are held out together."""

    def take(self, rows: RowsT, places: Sequence[int]) -> RowsT:
        """Return some of the rows."""

    def objective(
        self, student: Student, train: RowsT, validation: RowsT, terms: tuple[LossTerm, ...]
    ) -> TrainingObjective:
        """Return what the training loop minimises."""

    def measure(self, student: Student, held_out: RowsT) -> TrainedT:
        """Have the trained student answer the held-out rows."""

    def save(self, folder: Path, student: Student, train: RowsT, trained: TrainedT) -> None:
        """Write the student, and what only this kind keeps in its folder. train: the train rows."""

    def write(self, path: Path, ids: Sequence[str], trained: TrainedT, control: TrainedT | None) -> None:
        """Write eval.parquet."""

    def controls(self, ids: Sequence[str], train: RowsT) -> int:
        """Write the answers of the controls that cost nothing. Returns how many train rows they learned from."""

    def review(self, trained: TrainedT) -> None:
        """Caution where the student's answers give a reason to doubt them."""

    def facts(self, student: Student, rows: Mapping[str, RowsT], trained: TrainedT) -> Facts:
        """Return what only this kind records about the training."""


# ── export, quantize, bench ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Exported:
    """The outcome of export.

    agreement: with PyTorch, column of the card → value as shown; facts: for the manifest.
    """

    graph: GraphFacts
    agreement: Mapping[str, str]
    facts: Facts
    builder: str = "trace"


class HeldOut(Protocol):
    """The held-out rows, on which quantize scores every graph."""

    architecture: str
    """Key of the default candidates (`recipe.CANDIDATES`)."""
    unit: Unit
    """The unit that KL is a mean over."""
    metric: str
    """The score's name."""

    def check(self, exported: Path) -> None:
        """Raise UpstreamError unless the exported graph answers one row as its kind should."""

    def calibration(self, exported: Path) -> Calibration:
        """Return train rows, on which the cost of rounding each matrix is measured."""

    def measure(self, folders: Mapping[str, Path], advance: Callable[[int], None]) -> dict[str, Figures]:
        """Return the figures of each graph, from name to folder. Call ``advance`` with the rows of each block done."""

    def write(self, path: Path, name: str) -> None:
        """Write the chosen graph's answers to eval.parquet."""

    def review(self, name: str) -> None:
        """Caution where the chosen graph's answers give a reason to doubt them."""

    def facts(self, name: str) -> Facts:
        """Return what only this kind records about the chosen graph."""


@dataclass(frozen=True)
class Timing:
    """The models that bench times. The fields are those of `Bench.run`."""

    jobs: Mapping[str, Any]
    expected: Mapping[str, Answers]
    columns: Callable[[Sequence[ProcessRun]], Mapping[str, list[Any]]]
    more: Callable[[list[ProcessRun]], dict[str, Any]] = lambda runs: {}
    reads: Mapping[str, Reads] = field(default_factory=dict)


# ── report ───────────────────────────────────────────────────────────────────────────────────────


class KindReport(Facts):
    """The part of the report that only one kind has, next to `report.facts.ReportFacts`."""

    artifact: str | None
    """Path of the deployed graph from the run directory; None where nothing is deployed."""
    snippets: list[str] = []
    """Files of code that the page shows (`snippets.code`)."""


# ── what all kinds share ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class BoundTask:
    """A recipe and its run directory, read the way that every kind reads them."""

    recipe: Recipe
    workspace: Workspace
    runtime: ClassVar[str] = ""

    @property
    def views_path(self) -> Path:
        """Return the path of collect's views."""
        return self.workspace.folder("collect") / "views.parquet"

    def held_out_views(self) -> ViewTable:
        """Return the held-out rows with their views, in the order of every eval.parquet."""
        return view_table.read(self.views_path, "eval")
