"""What devices found, on disk and in the report; onnxruntime-web's files; how devices are invited."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segno

from distillctl import console
from distillctl.errors import RecipeError, UpstreamError
from distillctl.phone import assets, devices, task
from distillctl.phone.messages import Device
from distillctl.report import contract, markdown, page
from distillctl.run_dir.workspace import Workspace, file_digest
from tests.fixtures import project, report_run

pytestmark = pytest.mark.slow

AGENTS = {
    "Pixel 7, Chrome 130": ("Pixel 7", "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/130.0.0.0 Mobile"),
    "iPhone, Safari 17": (
        None,
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 Version/17.4 Safari/604.1",
    ),
    "Android, Firefox 131": (None, "Mozilla/5.0 (Android 14; Mobile; rv:131.0) Gecko/131.0 Firefox/131.0"),
    "Android, Samsung Internet 25": (None, "Mozilla/5.0 (Linux; Android 14) SamsungBrowser/25.0 Chrome/121.0 Mobile"),
    "Windows, Edge 129": (
        None,
        "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/129.0 Safari/537.36 Edg/129.0",
    ),
    "device, browser": (None, ""),
}


def device(agent: str, model: str | None = None) -> Device:
    screen = {"width": 390, "height": 844, "pixel_ratio": 3}
    return Device(user_agent=agent, model=model, screen=screen, isolated=False, gpu=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("expected", AGENTS)
def test_what_a_device_is_called(expected: str) -> None:
    model, agent = AGENTS[expected]
    assert devices.name(device(agent, model)) == expected


# ── in the run directory ─────────────────────────────────────────────────────────────────────────


def measured(workspace: Workspace, id: str, p50: float = 41.5, **changes: Any) -> devices.DeviceResult:
    check = {"rows": 100, "same_label": 99, "ties": 2, "max_probability_difference": 0.0123, "tolerance": 0.05}
    run = {"backend": "wasm", "threads": 1, "load_ms": 812, "first_ms": 77, "milliseconds": [p50] * 5}
    graph = file_digest(workspace.folder("quantize") / "model.onnx")
    found = {
        "id": id, "name": f"Phone <{id}>", "created": 1.0, "onnxruntime_web": "1", "device": device("agent & co"),
        "graph_sha256": graph, "download_ms": 1, "timer_ms": 0.1, "hidden": False, "failures": [],
        "runs": [{**run, "check": {**check, "same": True}}],
    }  # fmt: skip
    return devices.DeviceResult.model_validate(found | changes)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return report_run.committed(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workspace(committed: Workspace) -> Any:
    yield committed
    for file in committed.folder("devices").glob("*"):
        file.unlink()


def test_each_is_kept_beside_those_before(workspace: Workspace) -> None:
    assert devices.read(workspace) == []
    one, two = measured(workspace, "one", created=2.0), measured(workspace, "two")
    for each in (one, two):
        devices.add(workspace, each, {"quantize": "f"}, 0, 1.0)
        manifest = workspace.manifest("devices")
        assert manifest is not None
        assert manifest.inputs == {"quantize": "f"}
        names = sorted(manifest.outputs)
    assert devices.read(workspace) == [two, one]
    assert names == ["one.json", "two.json"]


def test_a_damaged_one_is_told_with_the_remedy(workspace: Workspace) -> None:
    devices.add(workspace, measured(workspace, "one"), {}, 0, 1.0)
    for name in ("one.json", "manifest.json"):
        (workspace.folder("devices") / name).write_text("{}")
        with pytest.raises(UpstreamError, match=r"damaged") as told:
            devices.read(workspace)
        assert told.value.next is not None
        assert "bench RECIPE --serve" in told.value.next


def test_the_report_has_a_column_for_each(workspace: Workspace) -> None:
    facts = contract.build(report_run.recipe(), workspace).as_json()
    assert 'id="devices"' not in page.render(report_run.reported(facts), contract.series(workspace))
    assert "in a browser" not in markdown.render(report_run.reported(facts))
    failure = {"backend": "webgpu", "threads": 1, "error": "no <adapter>"}
    devices.add(workspace, measured(workspace, "one", failures=[failure], hidden=True), {}, 0, 1.0)
    devices.add(workspace, measured(workspace, "two", 43.25), {}, 0, 1.0)
    devices.add(workspace, measured(workspace, "three", graph_sha256="0" * 64), {}, 0, 1.0)
    facts = contract.build(report_run.recipe(), workspace).as_json()
    assert [one["runs"][0]["p50_ms"] for one in facts["devices"]["measured"]] == [41.5, 43.25]
    html = page.render(report_run.reported(facts), contract.series(workspace)).replace("\u00a0", " ")
    for shown in (
        *("Phone &lt;one&gt;", "Phone &lt;two&gt;", "agent &amp; co", "no &lt;adapter&gt;"),
        *("41.5 ms", "43.2 ms", "812 ms", "77.0 ms", "99 of 100", "0.012"),
        *("in the background", "1 device ran an earlier graph"),
    ):
        assert shown in html, shown
    assert "Phone &lt;three&gt;" not in html
    text = markdown.render(report_run.reported(facts)).replace("\u00a0", " ")
    assert "| Phone &lt;one&gt; | 1 | 812 ms | 77.0 ms | 41.5 ms | 41.5 ms | 99 of 100 |" in text


# ── the check ────────────────────────────────────────────────────────────────────────────────────


def test_answers_are_judged_by_probability_and_near_ties_are_named() -> None:
    recorded = np.log(np.array([[0.9, 0.1], [0.52, 0.48]]))
    given = task.PhoneTask("t", Path("m"), "0", ["a", "b"], ["x", "y"], [], recorded)
    same = given.check((recorded + 3).tolist())  # logits need not be normalised
    assert (same["same"], same["same_label"], same["ties"]) == (True, 2, 1)
    assert same["max_probability_difference"] < 1e-9
    tie = given.check(np.log([[0.9, 0.1], [0.49, 0.51]]).tolist())
    assert (tie["same"], tie["same_label"]) == (True, 1)
    assert tie["max_probability_difference"] == pytest.approx(0.03)
    off = given.check(np.log([[0.8, 0.2], [0.52, 0.48]]).tolist())
    assert (off["same"], off["same_label"]) == (False, 2)
    for shape in ([[0.0, 1.0]], [[0.0], [1.0]]):
        with pytest.raises(ValueError, match="2 rows and 2 labels"):
            given.check(shape)


def test_a_model_that_writes_is_refused(tmp_path: Path) -> None:
    recipe = report_run.recipe(task={"kind": "generate"})
    with pytest.raises(RecipeError, match="one of several labels"):
        task.prepare(recipe, Workspace(tmp_path))


# ── the invitation ───────────────────────────────────────────────────────────────────────────────


def test_the_code_in_the_terminal_is_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure()
    address = "http://192.168.178.21:43123/3f2tPZ1c5nYkQ0m3v1bG6w/"
    console.show_qr(address)
    shown = capsys.readouterr()
    assert shown.out == ""
    first, *lines = shown.err.splitlines()
    assert first == address
    halves = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    drawn = [row for line in lines for row in zip(*(halves[character] for character in line), strict=True)]
    matrix = [tuple(row) for row in segno.make(address, error="l", micro=False).matrix_iter(border=2)]
    assert drawn[: len(matrix)] == matrix
    console.configure(verbosity=-1)
    console.show_qr(address)
    assert capsys.readouterr().err == address + "\n"
    console.configure()


@pytest.mark.slow
def test_interrupted_by_the_keyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = assets.cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe, run = project.finished(tmp_path / "project")
    if not cached.is_dir():
        pytest.skip("onnxruntime-web is not in the cache yet: tests/phone/test_page.py fetches it")
    words = ("bench", recipe, "--run-dir", run, "--serve", "--assets", cached)
    process = subprocess.Popen(
        project.command(*words), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=project.environment()
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("http://"):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    none = project.run(*words, "--serve-seconds", "1")
    assert none.returncode == 5
    assert "no device has sent results" in none.stderr
