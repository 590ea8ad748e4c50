"""Choose one of several labels: what each stage asks of this kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distillctl.data.view_table import ViewTable
from distillctl.run_dir.facts import DataFacts, StudentFacts
from distillctl.tasks.base import BoundTask, Exported, KindReport, Timing
from distillctl.tasks.classify.facts import ClassifyReport

if TYPE_CHECKING:
    import numpy as np

    from distillctl.bundle.builder import BundleBuilder
    from distillctl.bundle.manifest import FolderFacts
    from distillctl.data.rows import Dataset, Example
    from distillctl.runtimes.bench import BenchSession
    from distillctl.tasks.classify.collect import ClassifyCollection
    from distillctl.tasks.classify.quantize import ClassifyHeldOut
    from distillctl.tasks.classify.train import ClassifyTraining
    from distillctl.teachers.arms import Arm
    from distillctl.teachers.worker_pool import AnswerRequest, TeacherReader


@dataclass(frozen=True)
class ClassifyTask(BoundTask):
    """A `tasks.base.Task`."""

    runtime: ClassVar[str] = "onnx"
    report_part: ClassVar[type[KindReport]] = ClassifyReport

    def requests(self, reader: TeacherReader) -> Callable[[str, str, Example], AnswerRequest]:
        from distillctl.teachers.worker_pool import AnswerRequest

        request = AnswerRequest(self.recipe.classify.answer_prefix, tuple(self.recipe.classify.labels.values()))
        return lambda arm, split, example: request

    def collection(self, reader: object, dataset: Dataset, arms: Sequence[Arm], fingerprint: str) -> ClassifyCollection:
        from distillctl.tasks.classify.collect import ClassifyCollection

        return ClassifyCollection(self.recipe, self.workspace.folder("collect"), dataset, arms, fingerprint)

    def training(self) -> ClassifyTraining:
        from distillctl.tasks.classify.train import ClassifyTraining

        return ClassifyTraining(self.recipe, self.workspace)

    def export(self, model: Path, staged: Path, views: ViewTable) -> Exported:
        from distillctl.tasks.classify import export

        return export.export(self, model, staged, views)

    def held_out(self, views: ViewTable) -> ClassifyHeldOut:
        from distillctl.tasks.classify.quantize import ClassifyHeldOut

        return ClassifyHeldOut(self.recipe, self.workspace, views)

    def timing(self, bench: BenchSession) -> Timing:
        from distillctl.tasks.classify import bench as label_bench

        return label_bench.timing(self, bench)

    def paired_job(self) -> tuple[dict[str, Any], str]:
        return {"runtime": self.runtime}, "the whole query"

    def check_bundle(self) -> None:
        from distillctl.bundle import text_in

        if self.recipe.bundle.text_in:
            text_in.library()

    def fill_bundle(self, draft: BundleBuilder, views: ViewTable) -> FolderFacts:
        from distillctl.tasks.classify import bundle

        return bundle.fill(self.recipe, draft, views)

    def card(self, folder: Path, views: ViewTable, figures: Sequence[Mapping[str, str]], builder: str) -> str:
        from distillctl.snippets.reading import Reading
        from distillctl.tasks.classify import card

        collect = self.workspace.facts("collect", DataFacts)
        train = self.workspace.facts("train", StudentFacts)
        return card.render(self.recipe, collect, train, Reading.of(self.recipe, views, train, folder), figures)

    def compare(self, views: ViewTable, *, deployed: bool) -> tuple[dict[str, np.ndarray], ClassifyReport]:
        from distillctl.tasks.classify import report

        return report.compare(self.recipe, self.workspace, views, deployed=deployed)
