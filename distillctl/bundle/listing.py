"""bundle.json: every file with size and SHA-256, what it is, where it came from, and one answer to check against.

Its bytes follow from what it says (`dumps`), and `digest` is over all the rest: no byte of it can change unseen.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from distillctl.workspace import digest

NAME = "bundle.json"
MAX_BYTES = 16 * 1024 * 1024
"""Of bundle.json itself; a bundle has some twenty files."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Closed):
    """One file: size in bytes, SHA-256 (hex), and what it is."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    what: str


class Graph(_Closed):
    """A graph that can be opened. takes: ids of tokens, or the text itself; libraries: what has to be registered."""

    takes: Literal["ids", "text"]
    format: Literal["onnx", "ort"]
    libraries: tuple[str, ...] = ()
    against_onnx: dict[str, Any] = {}
    """How it answers the held-out rows, against the graph that quantize measured: rows, max_logit_difference,
    same_label; of a writing model's, rows and same_answers."""
    other_ids: tuple[str, ...] = ()
    """Of a text-in graph: those of some odd texts (`text_in.ODD_TEXTS`) that it gives other ids than the tokenizer."""


class Example(_Closed):
    """A text, and what the graphs made of it when the bundle was built."""

    text: str
    ids: list[int]
    """The text's tokens."""
    label: str | None = None
    logits: list[float] | None = None
    answer_ids: list[int] | None = None
    """Of a model that writes: the first tokens of its answer, greedily."""


class Listing(_Closed):
    format: Literal["distillctl bundle 1"] = "distillctl bundle 1"
    name: str
    task: Literal["classify", "generate"]
    labels: list[str]
    """In the order of the logits; empty for models that write."""
    max_length: int
    """Tokens that the model takes; longer inputs are cut."""
    files: dict[str, File]
    graphs: dict[str, Graph]
    example: Example
    measured: dict[str, Any]
    """quantize: figures on the held-out rows; bench: latencies of fp32 and deployed, null where there are none."""
    mobile: dict[str, Any]
    """Graph → execution provider → verdict of onnxruntime's own check for phones."""
    provenance: list[dict[str, Any]]
    """Teacher, student, data: part, source, licence as stated there, SHA-256 of what was read."""
    made_from: dict[str, str]
    """Stage → fingerprint of its manifest."""
    versions: dict[str, str]
    digest: str = ""

    def sealed(self) -> Listing:
        return self.model_copy(update={"digest": self._digest()})

    @property
    def is_whole(self) -> bool:
        return self.digest == self._digest()

    def dumps(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()

    def _digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"digest"}))
