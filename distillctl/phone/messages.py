"""Define what a page may send to the server. Devices are untrusted: no unknown keys, bounded sizes, finite numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_BYTES = 4 << 20
"""Largest message in bytes."""
MAX_ROWS, MAX_LABELS, MAX_QUERIES = 100, 1000, 200

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Milliseconds = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e7)]


def _printable(text: str) -> str:
    """Replace control characters, which could control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


Word = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Pixels = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e5)]


class PageMessage(BaseModel):
    """A message. Unknown keys are errors, and strings are not converted to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Screen(PageMessage):
    """Size in CSS pixels, and device pixels per CSS pixel."""

    width: Pixels
    height: Pixels
    pixel_ratio: Pixels


class Device(PageMessage):
    """The browser's statement about itself and its device; None without one."""

    user_agent: Text
    model: Word | None = None
    """These three from userAgentData, which few browsers have, and only on a secure page."""
    platform: Word | None = None
    platform_version: Word | None = None
    cores: Annotated[int, Field(ge=1, le=4096)] | None = None
    """navigator.hardwareConcurrency; some browsers round it down."""
    memory_gb: Annotated[float, Field(allow_inf_nan=False, ge=0, le=4096)] | None = None
    """navigator.deviceMemory, rounded and cut off at 8 by the browser."""
    screen: Screen
    isolated: bool
    """Cross-origin isolated; otherwise there are no threads."""
    gpu: bool
    """Whether the browser handed out a WebGPU adapter."""


class Measurement(PageMessage):
    """One backend's measurement, in a fresh worker."""

    backend: Literal["wasm", "webgpu"]
    threads: Annotated[int, Field(ge=1, le=64)]
    load_ms: Milliseconds
    """From the files' bytes in memory to a session: compiling the WebAssembly, parsing and preparing the graph."""
    first_ms: Milliseconds
    milliseconds: Annotated[list[Milliseconds], Field(min_length=1, max_length=MAX_QUERIES)]
    """Every timed query, after all rows were run once; from token ids to logits."""
    logits: Annotated[
        list[Annotated[list[Finite], Field(min_length=1, max_length=MAX_LABELS)]],
        Field(min_length=1, max_length=MAX_ROWS),
    ]
    """One list per row, in the order of the task."""


class Failure(PageMessage):
    """A backend that failed."""

    backend: Literal["wasm", "webgpu"]
    threads: Annotated[int, Field(ge=1, le=64)]
    error: Text


class Results(PageMessage):
    """All results of a device."""

    download_ms: Milliseconds
    """Fetching the graph from the server."""
    timer_ms: Milliseconds
    """The smallest step of the browser's clock."""
    hidden: bool
    """Whether the page was in the background meanwhile, where browsers slow it down."""
    measurements: Annotated[list[Measurement], Field(max_length=3)]
    failures: Annotated[list[Failure], Field(max_length=3)]
