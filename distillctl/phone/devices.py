"""Store devices' results in the run directory: one file per device, and a manifest like a stage's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from distillctl.errors import UpstreamError
from distillctl.phone.messages import MAX_BYTES, Device, Failure, Finite, Milliseconds, Word
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace, write_text
from distillctl.untrusted import limits

STAGE = "devices"
_BROWSERS = {
    "Edge": r"Edg(?:A|iOS)?/(\d+)",
    "Opera": r"OPR/(\d+)",
    "Samsung Internet": r"SamsungBrowser/(\d+)",
    "Firefox": r"(?:Firefox|FxiOS)/(\d+)",
    "Chrome": r"(?:Chrome|CriOS)/(\d+)",
    "Safari": r"Version/(\d+).*Safari/",
}
"""Name → pattern with the version. The first match counts: most browsers also name Chrome and Safari."""
_SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "Mac OS X": "Mac",
    "CrOS": "Chromebook",
    "Linux": "Linux",
}


class Check(BaseModel):
    """The comparison of a device's answers with the recorded ones, from `PhoneTask.check`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    same_label: int
    ties: int
    max_probability_difference: Finite
    tolerance: Finite
    same: bool


class BackendRun(BaseModel):
    """The measurement of one backend on a device."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    backend: Literal["wasm", "webgpu"]
    threads: int = Field(ge=1, le=64)
    load_ms: Milliseconds
    first_ms: Milliseconds
    milliseconds: list[Milliseconds] = Field(min_length=1)
    check: Check

    def figures(self) -> BackendFigures:
        """Return the facts for the report, with the samples as percentiles."""
        p50, p90 = (float(p) for p in np.percentile(self.milliseconds, (50, 90)))
        facts = self.model_dump(exclude={"milliseconds"})
        return BackendFigures(**facts, p50_ms=p50, p90_ms=p90, n=len(self.milliseconds))


class BackendFigures(Facts):
    """A backend's measurement in the report."""

    backend: Literal["wasm", "webgpu"]
    threads: int
    load_ms: float
    first_ms: float
    check: Check
    p50_ms: float
    p90_ms: float
    n: int


class DeviceFigures(Facts):
    """A device's results in the report. created: Unix time."""

    id: str
    name: str
    created: float
    onnxruntime_web: str
    device: Device
    graph_sha256: str
    download_ms: float
    timer_ms: float
    hidden: bool
    runs: list[BackendFigures]
    failures: list[Failure]


class DeviceResult(BaseModel):
    """All results of one device: devices/<id>.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Word
    """Id of the session."""
    name: Word
    created: Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e11)]
    """Unix time."""
    onnxruntime_web: Word
    device: Device
    graph_sha256: Word
    """SHA-256 of the graph that it ran."""
    download_ms: Milliseconds
    timer_ms: Milliseconds
    hidden: bool
    runs: list[BackendRun]
    failures: list[Failure]

    def figures(self) -> DeviceFigures:
        """Return the facts for commands and the report."""
        return DeviceFigures(**self.model_dump(exclude={"runs"}), runs=[run.figures() for run in self.runs])


class DevicesRecord(Facts):
    """The facts that the manifest records."""

    devices: list[DeviceFigures]


def name(device: Device) -> str:
    """Describe a device in a few words, such as Pixel 7, Chrome 130."""
    browser = next((f"{b} {m[1]}" for b, p in _BROWSERS.items() if (m := re.search(p, device.user_agent))), "browser")
    system = next((name for mark, name in _SYSTEMS.items() if mark in device.user_agent), "device")
    return f"{device.model or system}, {browser}"


def read(workspace: Workspace) -> list[DeviceResult]:
    """Read all results, the oldest first. Raise UpstreamError if they were changed."""
    folder = workspace.folder(STAGE)
    next = f"rm -r {folder}, and measure again: distillctl bench RECIPE --serve"
    try:
        manifest = workspace.manifest(STAGE)
        if manifest is None:
            return []
        if damage := workspace.damage(STAGE, manifest):
            raise UpstreamError(damage)
        results = [
            DeviceResult.model_validate_json(limits.read_bytes(folder / name, MAX_BYTES)) for name in manifest.outputs
        ]
    except (UpstreamError, ValueError, OSError) as error:
        raise UpstreamError(str(error).splitlines()[0], where=str(folder), next=next) from None
    return sorted(results, key=lambda measured: measured.created)


def add(workspace: Workspace, measured: DeviceResult, inputs: Mapping[str, str], seed: int, seconds: float) -> None:
    """Commit one more result. inputs: fingerprints of what the device ran. seconds: duration."""
    devices = [*read(workspace), measured]
    write_text(workspace.folder(STAGE) / f"{measured.id}.json", measured.model_dump_json(indent=1) + "\n")
    workspace.commit(
        STAGE,
        recipe={},
        inputs=inputs,
        outcome=StageOutput(
            [f"{device.id}.json" for device in devices],
            DevicesRecord(devices=[device.figures() for device in devices]),
        ),
        seed=seed,
        seconds=seconds,
    )
