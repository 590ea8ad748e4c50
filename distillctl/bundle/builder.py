"""Build a bundle: the steps that all task kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl import console, interrupts
from distillctl.bundle import archive, contents, figures, mobile, text_in
from distillctl.bundle.manifest import (
    NAME,
    ArchiveSize,
    BundleManifest,
    File,
    FolderFacts,
    GoldenExample,
    Graph,
    MobileAdvice,
)
from distillctl.graphs import sidecar_files
from distillctl.recipe import Recipe
from distillctl.run_dir.bench_facts import BenchFacts
from distillctl.run_dir.facts import DeployedFacts, Facts, FactsT
from distillctl.run_dir.workspace import Manifest, StageOutput, Workspace, replacing, versions
from distillctl.snippets import javascript
from distillctl.snippets.reading import Reading

ARCHIVE = "bundle.zip"


@dataclass(frozen=True)
class BundleBuilder:
    """A bundle under construction.

    folder: the bundle's folder, which holds quantize's files. manifests: of the stages from which it is made.
    """

    recipe: Recipe
    workspace: Workspace
    folder: Path
    manifests: Mapping[str, Manifest]

    @classmethod
    def begin(cls, recipe: Recipe, workspace: Workspace, folder: Path, runtime: str) -> BundleBuilder:
        """Copy the files of quantize and the licences into ``folder``, once the graph runs as ``runtime``."""
        stages = ("collect", "train", "export", "quantize")
        sidecar_files.try_out(workspace.folder("quantize"), runtime, "distillctl quantize RECIPE --force")
        manifests = {name: manifest for name in stages if (manifest := workspace.manifest(name))}
        contents.copy(workspace.folder("quantize"), manifests["quantize"].outputs, folder)
        contents.licences(recipe, folder)
        return cls(recipe, workspace, folder, manifests)

    def facts(self, stage: str, model: type[FactsT]) -> FactsT:
        """Return what the manifest of an earlier stage records."""
        return self.manifests[stage].read(model)

    @property
    def bench(self) -> BenchFacts | None:
        """Return bench's facts if it measured this graph."""
        measured = figures.bench(self.workspace)
        return measured.read(BenchFacts) if measured else None

    def figures(self, unit: str) -> tuple[list[dict[str, str]], str]:
        """Return the card's table, and a sentence about its latencies."""
        return figures.measured(self.facts("quantize", DeployedFacts), self.bench, unit), figures.machine(self.bench)

    def verdicts(self) -> dict[str, Any]:
        """Run onnxruntime's mobile usability check on every graph that takes token ids, and note the result."""
        by_graph = {}
        for path in sorted(self.folder.glob("*.onnx")):
            interrupts.raise_if_pending()
            if path.name != text_in.FILE:
                by_graph[path.name] = mobile.check_usability(path)
                console.note(f"bundle: {path.name}: {mobile.advice(by_graph[path.name])}")
        return by_graph

    def files(self) -> dict[str, File]:
        """Return path → size and hash of the files in the folder."""
        return contents.files(self.folder)

    def close(
        self,
        labels: list[str],
        reading: Reading,
        max_length: int,
        graphs: dict[str, Graph],
        example: GoldenExample,
        verdicts: dict[str, Any],
    ) -> FolderFacts:
        """Write bundle.json last, and return the stage's facts."""
        kept = {"chosen", "bytes", "kl", "same_top", "score", "fp32"}
        quantize = self.facts("quantize", DeployedFacts).model_dump(include=kept, exclude_unset=True)
        inputs = self.manifests["collect"].inputs | self.manifests["train"].inputs
        manifest = BundleManifest(
            name=self.recipe.name,
            task=self.recipe.task.kind,
            labels=labels,
            template=reading.template,
            max_length=max_length,
            view_limit=reading.limit,
            tail=reading.tail,
            scoring=self.recipe.task.scoring,
            other_ids=javascript.other_ids(reading),
            files=self.files(),
            graphs=graphs,
            example=example,
            measured={"quantize": quantize, "bench": _latencies(self.bench)},
            mobile=verdicts,
            provenance=contents.provenance(self.recipe, inputs),
            made_from={name: manifest.fingerprint for name, manifest in self.manifests.items()},
            versions=versions(),
        ).with_checksum()
        (self.folder / NAME).write_bytes(manifest.dumps())
        return FolderFacts(
            folder="bundle",
            archive=ARCHIVE,
            files=contents.sizes(manifest.files),
            graphs={name: Graph(**graph.model_dump()) for name, graph in graphs.items()},  # with its defaults
            example=Facts(**example.model_dump(exclude_none=True)),
            template=Facts(**reading.template.model_dump(mode="json", exclude_none=True)),
            mobile={
                name: MobileAdvice(advice=mobile.advice(verdict), providers=verdict)
                for name, verdict in verdicts.items()
            },
            provenance=manifest.provenance,
        )


def outcome(workspace: Workspace, facts: FolderFacts) -> StageOutput:
    """Archive the finished folder, and return the stage's output."""
    folder, target = workspace.folder("bundle"), workspace.root / ARCHIVE
    with replacing(target) as temporary:
        archive.write(folder, temporary)
    outputs = sorted(path.name for path in folder.iterdir())
    return StageOutput([*outputs, f"../{ARCHIVE}"], facts | ArchiveSize(archive_bytes=target.stat().st_size))


def _latencies(bench: BenchFacts | None) -> dict[str, Any] | None:
    if bench is None:
        return None
    keys = {"p50_ms", "p90_ms", "p99_ms", "n", "load_ms", "peak_rss_bytes"}
    models = {
        name: model.model_dump(include=keys, exclude_unset=True)
        for name, model in bench.models.items()
        if name in ("fp32", "deployed", "deployed_genai")
    }
    return {"models": models, "machine": bench.machine.as_json(), "threads": bench.threads}
