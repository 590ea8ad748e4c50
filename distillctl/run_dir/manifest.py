"""What a stage committed, from what, and what it found: manifest.json, which carries its own checksum."""

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
"""Checkpoints, by their path from train's folder: what only an unfinished run needs."""
_MANIFEST_BYTES = 64 << 20


def _inside(name: str) -> str:
    """A path below a stage's folder, or a file beside it (bundle.zip), whatever the system makes of it."""
    parts = name.removeprefix("../").split("/")
    most = 1 if name.startswith("../") else 16
    if not (name.isprintable() and len(parts) <= most and all(p.strip(".") and len(p.encode()) < 256 for p in parts)):
        raise ValueError("no path of the stage's")
    return name


def _scratch(name: str) -> str:
    if not SCRATCH.fullmatch(name):
        raise ValueError("no checkpoint")
    return name


class Output(BaseModel):
    """One file a stage committed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


Files = dict[Annotated[str, AfterValidator(_inside)], Output]
"""Path from the stage's folder → hash and size."""


class Manifest(BaseModel):
    """What a stage committed, from what, and what it found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    recipe: dict[str, Any]
    """The part of the recipe the stage depends on."""
    inputs: dict[str, str]
    """Name → fingerprint: upstream manifests, data files, model files."""
    outputs: Files
    facts: dict[str, Any]
    """The stage's findings; every number in the report is one of them."""
    versions: dict[str, str]
    seed: int
    seconds: float
    created: float
    """Unix time."""
    keeps: Files = {}
    """Files that only the stage's own next run reads: a server's answers, so that none is paid for twice."""
    scratch: tuple[Annotated[str, AfterValidator(_scratch)], ...] = ()
    """Folders that are removed as soon as this manifest is there: `SCRATCH`."""
    checksum: str | None = None
    """Over all of the above as it stands in the file; None: an older version wrote it."""

    @property
    def fingerprint(self) -> str:
        """Over what was asked, from what, and the bytes that came of it; not over times and versions."""
        return digest(self.model_dump(include={"stage", "recipe", "inputs", "outputs", "seed"}, mode="json"))

    @property
    def files(self) -> Files:
        """All that has to be as it was written."""
        return {**self.outputs, **self.keeps}

    def sealed(self) -> tuple[Manifest, str]:
        """With its checksum, and as the text of a file."""
        text = checksums.put(self.model_dump_json(indent=2, exclude={"checksum"}))
        return self.model_copy(update={"checksum": checksums.of(text)}), text

    @classmethod
    def loads(cls, raw: bytes) -> Manifest:
        """ValueError where it is not as it was written."""
        document, checksum = checksums.read(raw)
        found = cls.model_validate(document)
        return found.model_copy(update={"facts": facts.checked(found.facts), "checksum": checksum})


def read(path: Path, stage: str) -> Manifest:
    """The manifest of ``stage``. ValueError or OSError where it cannot be read as such."""
    manifest = Manifest.loads(limits.read_bytes(path, _MANIFEST_BYTES))
    if manifest.stage != stage:
        raise ValueError(f"it is one of {manifest.stage}")
    return manifest


def names(path: Path) -> set[str]:
    """The files that a manifest names, though it may be damaged otherwise; none where it cannot be read."""
    try:
        document = json.loads(limits.read_bytes(path, _MANIFEST_BYTES))
        return {name for key in ("outputs", "keeps") for name in document.get(key, {})}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return set()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
