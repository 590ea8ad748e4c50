"""Read and write manifest.json: a stage's outputs, inputs and findings, with a checksum of its own."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from distillctl.run_dir import checksums, facts
from distillctl.run_dir.bench_facts import BenchFacts
from distillctl.run_dir.facts import CollectFacts, ExportFacts, FactsT, QuantizeFacts, StageFacts, TrainFacts
from distillctl.run_dir.fingerprints import digest
from distillctl.untrusted import limits

MANIFEST = "manifest.json"
LIBRARIES = (
    "distillctl",
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "onnxruntime-extensions",
    "tokenizers",
)
SCRATCH = re.compile(r"checkpoints/[a-z]+-[0-9a-f]{16}-step-\d+(-damaged)?")
"""Paths of checkpoints from train's folder. Only an unfinished run needs them."""
_MANIFEST_BYTES = 64 << 20
MODELS: dict[str, type[StageFacts]] = {
    "collect": CollectFacts,
    "train": TrainFacts,
    "export": ExportFacts,
    "quantize": QuantizeFacts,
    "bench": BenchFacts,
}
"""Stage → what it records whatever the kind of task; of the others, only cautions are checked."""


def _inside(name: str) -> str:
    """Accept a path below a stage's folder, or a file in the run directory itself (bundle.zip)."""
    parts = name.removeprefix("../").split("/")
    most = 1 if name.startswith("../") else 16
    if not (name.isprintable() and len(parts) <= most and all(p.strip(".") and len(p.encode()) < 256 for p in parts)):
        raise ValueError("not a path of the stage")
    return name


def _scratch(name: str) -> str:
    if not SCRATCH.fullmatch(name):
        raise ValueError("not a checkpoint")
    return name


class Output(BaseModel):
    """One file that a stage committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


Files = dict[Annotated[str, AfterValidator(_inside)], Output]
"""Path from the stage's folder → hash and size."""


class Manifest(BaseModel):
    """A stage's outputs, inputs and findings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    recipe: dict[str, Any]
    """The part of the recipe the stage depends on."""
    inputs: dict[str, str]
    """Name → fingerprint: upstream manifests, data files, model files."""
    outputs: Files
    facts: dict[str, Any]
    """The stage's findings, as they stand in the file; every number in the report is one of them. `read` types them."""
    versions: dict[str, str]
    seed: int
    seconds: float
    created: float
    """Unix time."""
    keeps: Files = {}
    """Files that only the next run of the stage reads: a server's answers, so that none is paid for twice."""
    scratch: tuple[Annotated[str, AfterValidator(_scratch)], ...] = ()
    """Checkpoint folders (`SCRATCH`) that are removed once this manifest is written."""
    checksum: str | None = None
    """Checksum of all of the above as it stands in the file. None: an older version wrote the file."""

    @property
    def fingerprint(self) -> str:
        """Return the hash of the recipe's part, the inputs and the outputs, without times and versions."""
        return digest(self.model_dump(include={"stage", "recipe", "inputs", "outputs", "seed"}, mode="json"))

    @property
    def files(self) -> Files:
        """Return all files that must not change."""
        return {**self.outputs, **self.keeps}

    def read(self, model: type[FactsT]) -> FactsT:
        """Return the part of the facts that ``model`` declares. Raise UpstreamError if it is not all there."""
        return facts.read(model, self.facts, self.stage)

    def with_checksum(self) -> tuple[Manifest, str]:
        """Return the manifest with its checksum, and the text of the file."""
        text = checksums.put(self.model_dump_json(indent=2, exclude={"checksum"}))
        return self.model_copy(update={"checksum": checksums.of(text)}), text

    @classmethod
    def loads(cls, raw: bytes) -> Manifest:
        """Parse a manifest. Raise ValueError if it is damaged."""
        document, checksum = checksums.read(raw)
        manifest = cls.model_validate(document)
        facts.check(MODELS.get(manifest.stage, StageFacts), manifest.facts)
        return manifest.model_copy(update={"checksum": checksum})


def read(path: Path, stage: str) -> Manifest:
    """Read the manifest of ``stage``. Raise ValueError or OSError if the file is not one."""
    manifest = Manifest.loads(limits.read_bytes(path, _MANIFEST_BYTES))
    if manifest.stage != stage:
        raise ValueError(f"it belongs to {manifest.stage}")
    return manifest


def names(path: Path) -> set[str]:
    """Return the files that a manifest names, even if it is damaged; none if it cannot be read."""
    try:
        document = json.loads(limits.read_bytes(path, _MANIFEST_BYTES))
        return {name for key in ("outputs", "keeps") for name in document.get(key, {})}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on which the numbers depend."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
