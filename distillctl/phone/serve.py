"""Serve the page for bench --serve, wait for devices, and store their results."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl import console
from distillctl.errors import GateFailed, UnavailableError
from distillctl.phone import addresses, assets, devices, task
from distillctl.phone.messages import Device, Failure, Results
from distillctl.phone.server import PhoneServer
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    host: str = addresses.LOOPBACK
    port: int = 0
    """0 stands for any free port."""
    assets: Path | None = None
    devices: int = 1
    """Stop after this many devices."""
    idle_seconds: float = 600.0
    """Stop after this many seconds without a request."""


class _Visits:
    """The devices that came: stored results and failures."""

    def __init__(
        self, recipe: Recipe, workspace: Workspace, phone_task: task.PhoneTask, inputs: Mapping[str, str]
    ) -> None:
        self._recipe, self._workspace, self._task, self._inputs = recipe, workspace, phone_task, inputs
        self._began = time.monotonic()
        self.stored: list[devices.DeviceResult] = []
        self.failed: list[tuple[str, Failure]] = []

    def store(self, session: str, device: Device, results: Results) -> dict[str, Any]:
        """Check and commit one device's results. Raise ValueError if they do not fit the task."""
        name = devices.name(device)
        runs = [
            devices.BackendRun(
                **measurement.model_dump(exclude={"logits"}),
                check=devices.Check(**self._task.check(measurement.logits)),
            )
            for measurement in results.measurements
        ]
        for failure in results.failures:
            console.warn(f"{name}: {_way(failure.backend, failure.threads)} did not work: {failure.error}")
        if not runs:
            if not results.failures:
                raise ValueError("neither measurements nor failures")
            self.failed.append((name, results.failures[0]))
            return {"stored": False}
        measured = devices.DeviceResult(
            id=session,
            name=name,
            created=round(time.time(), 3),
            onnxruntime_web=assets.VERSION,
            device=device,
            graph_sha256=self._task.sha256,
            runs=runs,
            **results.model_dump(exclude={"measurements"}),
        )
        devices.add(self._workspace, measured, self._inputs, self._recipe.seed, time.monotonic() - self._began)
        self.stored.append(measured)
        console.note(f"{name} is done; stored in {self._workspace.folder(devices.STAGE) / session}.json")
        return {"stored": True}


def serve(
    recipe: Recipe, workspace: Workspace, options: Options, inputs: Mapping[str, str]
) -> list[devices.DeviceFigures]:
    """Serve the page until enough devices are done or no request comes any more. Return the devices' figures.

    inputs: fingerprints of the stages whose outputs are served. Each device's results are committed at once, so an
    interrupted command keeps them. Raises UnavailableError if no device came or none could run the graph; GateFailed if
    a device's answers differ from the recorded ones (they are stored for the report).
    """
    address = addresses.resolve(options.host)
    phone_task = task.prepare(recipe, workspace)
    devices.read(workspace)  # raises now, instead of after a minute's wait, if they are damaged
    files = assets.find(options.assets)
    visits = _Visits(recipe, workspace, phone_task, inputs)
    table = {name: files / name for name in assets.FILES} | {"model.onnx": phone_task.graph}
    with _listening(options, address, table, phone_task.describe(), visits) as server:
        while server.answered < options.devices and server.failure is None:
            left = server.active + options.idle_seconds - time.monotonic()
            if left <= 0:
                break
            server.changed.wait(left)
            server.changed.clear()
        if server.failure is not None:
            raise server.failure
    return _outcome(visits, options)


@contextlib.contextmanager
def _listening(
    options: Options, address: str, files: Mapping[str, Path], description: Mapping[str, object], visits: _Visits
) -> Iterator[PhoneServer]:
    """Run the server in its own threads, and show its address."""
    try:
        names = addresses.names(options.host, address)
        server = PhoneServer((address, options.port), names, files, description, visits.store)
    except (OSError, OverflowError) as error:
        where = f"--host {options.host} --port {options.port}"
        reason = getattr(error, "strerror", None) or str(error)
        raise UnavailableError(
            f"the server cannot listen there: {reason}", where=where, next="choose another --port, or 0 for any"
        ) from None
    port = server.server_address[1]
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            console.show_qr(f"http://{addresses.shown(options.host, address)}:{port}/{server.token}/")
            if ipaddress.ip_address(address).is_loopback:
                console.note(
                    "only this machine can open it. For a phone in the same network, add --host 0.0.0.0. For an "
                    f"Android phone on a cable, adb reverse tcp:{port} tcp:{port}; its browser then has threads and "
                    "WebGPU"
                )
            yield server
        finally:
            server.shutdown()
            thread.join()


def _outcome(visits: _Visits, options: Options) -> list[devices.DeviceFigures]:
    if not visits.stored:
        if visits.failed:
            name, failure = visits.failed[0]
            raise UnavailableError(f"the graph could not be run: {failure.error}", where=name)
        raise UnavailableError(
            f"no device has sent results, and no request came within {options.idle_seconds:g} s",
            next="distillctl bench RECIPE --serve --host 0.0.0.0, and scan the code with a phone in the same network",
        )
    came = len(visits.stored) + len(visits.failed)
    if came < options.devices:
        console.warn(f"only {came} of {options.devices} devices came")
    for measured in visits.stored:
        for run in measured.runs:
            if not run.check.same:
                raise GateFailed(
                    f"{_way(run.backend, run.threads)}: a probability differs from the recorded one by "
                    f"{run.check.max_probability_difference:.3f} ({run.check.tolerance} is allowed), and "
                    f"{run.check.same_label} of {run.check.rows} rows have the same label. The results are stored "
                    "nevertheless.",
                    where=measured.name,
                    next="choose another candidate (quantize.candidates): this graph answers differently there",
                )
    return [measured.figures() for measured in visits.stored]


def _way(backend: str, threads: int) -> str:
    return "WebGPU" if backend == "webgpu" else f"WebAssembly, {threads} thread{'s' if threads > 1 else ''}"
