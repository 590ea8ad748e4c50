"""Answer with text: what each stage asks of this kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distillctl.data.view_table import ViewTable
from distillctl.run_dir.facts import DataFacts
from distillctl.tasks.base import BoundTask, Exported, KindReport, Timing
from distillctl.tasks.generate.facts import GenerateReport, GenerateTrain

if TYPE_CHECKING:
    import numpy as np

    from distillctl.bundle.builder import BundleBuilder
    from distillctl.bundle.manifest import FolderFacts
    from distillctl.data.rows import Dataset, Example
    from distillctl.runtimes.bench import BenchSession
    from distillctl.tasks.generate.collect import GenerateCollection
    from distillctl.tasks.generate.quantize import GenerateHeldOut
    from distillctl.tasks.generate.train import GenerateTraining
    from distillctl.teachers.arms import Arm
    from distillctl.teachers.worker_pool import AnswerRequest, TeacherReader


@dataclass(frozen=True)
class GenerateTask(BoundTask):
    """A `tasks.base.Task`."""

    runtime: ClassVar[str] = "onnx_text"
    report_part: ClassVar[type[KindReport]] = GenerateReport

    def requests(self, reader: TeacherReader) -> Callable[[str, str, Example], AnswerRequest]:
        from distillctl.tasks.generate import collect

        return partial(collect.request, self.recipe)

    def collection(self, reader: object, dataset: Dataset, arms: Sequence[Arm], fingerprint: str) -> GenerateCollection:
        from distillctl.tasks.generate.collect import GenerateCollection

        folder = self.workspace.folder("collect")
        return GenerateCollection(self.recipe, folder, dataset, arms, reader, fingerprint)

    def training(self) -> GenerateTraining:
        from distillctl.tasks.generate.train import GenerateTraining

        return GenerateTraining(self.recipe, self.workspace)

    def export(self, model: Path, staged: Path, views: ViewTable) -> Exported:
        from distillctl.tasks.generate import export

        return export.export(self, model, staged, views)

    def held_out(self, views: ViewTable) -> GenerateHeldOut:
        from distillctl.tasks.generate.quantize import GenerateHeldOut

        return GenerateHeldOut(self.recipe, self.workspace, views)

    def timing(self, bench: BenchSession) -> Timing:
        from distillctl.tasks.generate import bench as text_bench

        return text_bench.timing(self, bench)

    def paired_job(self) -> tuple[dict[str, Any], str]:
        from distillctl.tasks.generate import bench

        return bench.paired_job(self)

    def check_bundle(self) -> None:
        """Do nothing: a bundle of this kind needs no optional package."""

    def fill_bundle(self, draft: BundleBuilder, views: ViewTable) -> FolderFacts:
        from distillctl.tasks.generate import bundle

        return bundle.fill(self.recipe, draft, views)

    def card(self, folder: Path, views: ViewTable, figures: Sequence[Mapping[str, str]], builder: str) -> str:
        from distillctl.runtimes import text_folder
        from distillctl.snippets.reading import Reading
        from distillctl.tasks.generate import card

        collect = self.workspace.facts("collect", DataFacts)
        train = self.workspace.facts("train", GenerateTrain)
        reading, begin = Reading.of(self.recipe, views, train, folder), text_folder.begin(folder)
        return card.render(self.recipe, collect, train, reading, figures, builder, begin)

    def compare(self, views: ViewTable, *, deployed: bool) -> tuple[dict[str, np.ndarray], GenerateReport]:
        from distillctl.tasks.generate import report

        return report.compare(self.recipe, self.workspace, views, deployed=deployed)
