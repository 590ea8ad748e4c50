"""bundle.json: every file with size, SHA-256, description and source, and one answer to check against.

Its bytes follow from its content (`dumps`), and `digest` covers everything else, so every changed byte is noticed.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from distillctl.data.view_template import ViewTemplate
from distillctl.run_dir.facts import Facts, StageFacts
from distillctl.run_dir.workspace import digest

NAME = "bundle.json"
OLD_FORMAT = b'"distillctl bundle 1"'
MAX_BYTES = 16 * 1024 * 1024
"""Largest bundle.json; a bundle has about twenty files."""


class _ManifestPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_ManifestPart):
    """One file: size in bytes, SHA-256 (hex), and a description."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    what: str


class Graph(_ManifestPart):
    """A graph. takes: token ids or text. libraries: operator libraries that must be registered."""

    takes: Literal["ids", "text"]
    format: Literal["onnx", "ort"]
    libraries: tuple[str, ...] = ()
    against_onnx: dict[str, Any] = {}
    """Comparison with the graph that quantize measured, on the held-out rows: rows, and max_logit_difference and
    same_label, or same_answers."""
    other_ids: tuple[str, ...] = ()
    """The odd texts (`text_in.ODD_TEXTS`) that a text-in graph tokenizes differently."""


class GoldenExample(_ManifestPart):
    """An input, and the graphs' answer to it when the bundle was built."""

    input: str | None
    """The input as an app gets it; null if a view needs more than an input."""
    view: str
    """The input rendered with `template`."""
    ids: list[int]
    """Token ids of the view."""
    label: str | None = None
    logits: list[float] | None = None
    answer_ids: list[int] | None = None
    """For a model that generates: the first tokens of its greedy answer."""


class MobileAdvice(Facts):
    """The result of onnxruntime's check of a graph for phones (`bundle.mobile`)."""

    advice: str
    providers: dict[str, Any]


class FolderFacts(Facts):
    """A finished bundle. folder, archive: paths from the run directory."""

    folder: str
    archive: str
    files: dict[str, int]
    """Name → bytes."""
    graphs: dict[str, Graph]
    example: Facts
    template: Facts
    mobile: dict[str, MobileAdvice]
    """Name of a graph → advice."""
    provenance: list[dict[str, Any]]


class ArchiveSize(Facts):
    """Bytes of the archive."""

    archive_bytes: int


class BundleFacts(FolderFacts, ArchiveSize, StageFacts):
    """The facts that bundle records."""


class BundleManifest(_ManifestPart):
    """bundle.json: what the bundle holds, where it comes from and how it is used."""

    format: Literal["distillctl bundle 2"] = "distillctl bundle 2"
    name: str
    task: str
    labels: list[str]
    """In the order of the logits; empty for `generate`."""
    template: ViewTemplate
    """The template that the student was trained with, to apply to an input before the tokenizer. The snippets do that,
    and the text-in graph contains it."""
    max_length: int
    """Maximal number of tokens of the model."""
    view_limit: int
    """Maximal number of tokens of a view; a decoder's answer comes on top."""
    tail: list[int] | None
    """The tokens after the input in every view. A view that is too long keeps its first tokens and these, so that only
    the end of the input is cut; null: it is refused instead."""
    scoring: str
    """The meaning of the graph's output, and how to use it."""
    other_ids: dict[str, tuple[str, ...]] = {}
    """Tokenizer's package → some texts to which it is known to give other ids than `tokenizer.json`."""
    files: dict[str, File]
    graphs: dict[str, Graph]
    example: GoldenExample
    measured: dict[str, Any]
    """quantize: figures on the held-out rows. bench: latencies of fp32 and deployed, or null."""
    mobile: dict[str, Any]
    """Graph → execution provider → verdict of onnxruntime's own check for phones."""
    provenance: list[dict[str, Any]]
    """Teacher, student, data: part, source, licence as stated there, SHA-256 of the files that were read."""
    made_from: dict[str, str]
    """Stage → fingerprint of its manifest."""
    versions: dict[str, str]
    digest: str = ""

    def with_checksum(self) -> BundleManifest:
        """Return the manifest with its own checksum."""
        return self.model_copy(update={"digest": self._digest()})

    @property
    def is_whole(self) -> bool:
        """Tell whether the manifest is as it was written."""
        return self.digest == self._digest()

    def dumps(self) -> bytes:
        """Return the manifest as indented JSON in UTF-8."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    def _digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"digest"}))
