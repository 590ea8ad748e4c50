"""The page in a browser of a phone's size: what it measures is stored and reaches the report."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillctl.errors import UnavailableError
from distillctl.phone import assets, devices, serve
from distillctl.phone.task import TOLERANCE
from distillctl.recipe import CANDIDATES, WeightOnly
from distillctl.run_dir.workspace import Workspace
from distillctl.stages import export, quantize
from tests.fixtures import project, tiny
from tests.fixtures.browser import EXECUTABLE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH (Debian: apt-get install chromium)"),
]
OPEN = {"max_kl": 10.0, "min_same_top": 0.0, "max_score_drop": 1.0}


@pytest.fixture(scope="module")
def files() -> Path:
    """onnxruntime-web's files, fetched once for all tests and users of this machine."""
    try:
        return assets.find()
    except UnavailableError as error:
        pytest.skip(f"neither the npm registry nor a cache: {error}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=EXECUTABLE, args=arguments)
        yield browser
        browser.close()


def phone(chromium: Any, scheme: str = "light", **more: Any) -> Any:
    """A page at a phone's size, in a context of its own; ``problems`` collects what it logs."""
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme, **more
    )
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    return page


def ended(page: Any) -> str:
    page.wait_for_selector("body[data-state]", timeout=300_000)
    return page.get_attribute("body", "data-state")


@contextmanager
def command(*args: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`distillctl bench --serve` in a process of its own, and the address it says."""
    process = subprocess.Popen(
        project.command("bench", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=project.environment(),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                yield process, found[0]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.kill()
        process.wait()


# ── the whole way, by the command line ───────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and its run directory with every stage committed."""
    return project.finished(tmp_path_factory.mktemp("project"))


def test_two_phones_at_once_measure_and_the_report_shows_both(
    ran: tuple[Path, Path], files: Path, chromium: Any
) -> None:
    recipe, run = ran
    pages = [
        phone(
            chromium, scheme, user_agent=f"Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/{version}.0 Mobile"
        )
        for scheme, version in (("light", 131), ("dark", 132))
    ]
    with command(recipe, "--run-dir", run, "--serve", "--assets", files, "--devices", 2, "--json") as (process, url):
        for page in pages:
            page.goto(url)
        assert [ended(page) for page in pages] == ["done", "done"]
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    token = url.rsplit("/", 2)[1]
    assert token not in err  # said once, before
    found = json.loads(out)["devices"]
    assert sorted(one["name"] for one in found) == ["Android, Chrome 131", "Android, Chrome 132"]
    assert found[0]["id"] != found[1]["id"]
    recorded = 40  # all there are
    for one, page in zip(sorted(found, key=lambda one: one["name"]), pages, strict=True):
        assert page.problems == [] or all("adapter" in problem for problem in page.problems)
        assert one["failures"] == []
        assert one["device"]["isolated"]
        assert one["runs"][0]["threads"] == 1
        for run_ in one["runs"]:
            check = run_["check"]
            assert check["same"]
            assert (check["rows"], check["same_label"]) == (recorded, recorded)
            assert check["max_probability_difference"] < TOLERANCE
            assert 0 < run_["p50_ms"] <= run_["p90_ms"]
            assert run_["n"] == 200
        assert page.inner_text("#same") == f"{recorded} of {recorded}"
        assert page.inner_text("#headline") == "Done"
        best = min(one["runs"], key=lambda run: run["p50_ms"])
        assert page.inner_text("#typical") == f"{best['p50_ms']:.2f} ms"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in pages]
    assert colours == ["rgb(246, 247, 249)", "rgb(15, 18, 23)"]

    stored = devices.read(Workspace(run))
    assert {one.id for one in stored} == {one["id"] for one in found}
    states = json.loads(project.run("status", recipe, "--run-dir", run, "--json").stdout)["stages"]
    assert {s["stage"]: (s["state"], s["why"]) for s in states}["report"] == ("stale", ["devices changed"])
    assert [s["stage"] for s in states if s["state"] != "fresh"] == ["report"]
    done = project.run("report", recipe, "--run-dir", run, "--format", "md")
    assert done.stdout.count("| Android, Chrome 13") == sum(len(one["runs"]) for one in found)
    html = (run / "report" / "report.html").read_text(encoding="utf-8")
    for one in found:
        assert one["name"] in html
        assert one["device"]["user_agent"] in html
    assert f"{recorded} of {recorded}" in html
    assert (
        json.loads(project.run("status", recipe, "--run-dir", run, "--json").stdout)["stages"][-1]["state"] == "fresh"
    )

    file = run / "devices" / f"{found[0]['id']}.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    damaged = project.run("report", recipe, "--run-dir", run, "--force")
    file.write_bytes(whole)
    assert damaged.returncode == 4
    assert "is damaged" in damaged.stderr
    assert "bench RECIPE --serve" in damaged.stderr


def test_none_comes_and_what_does_not_go_together(ran: tuple[Path, Path], files: Path) -> None:
    recipe, run = ran
    alone = project.run("bench", recipe, "--run-dir", run.parent / "none", "--serve", "--assets", files)
    assert alone.returncode == 4
    assert "needs collect" in alone.stderr
    for words, code in ((("--port", "1"), 2), (("--serve", "--force"), 2), (("--serve", "--host", "no host"), 2),
                        (("--serve", "--assets", str(run)), 3)):  # fmt: skip
        assert project.run("bench", recipe, "--run-dir", run, *words).returncode == code


# ── what may go wrong, and every kind of graph ───────────────────────────────────────────────────


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    space = tiny.workspace(tmp_path_factory.mktemp("run"), rows=12)
    tiny.commit(space, "export", export.run(tiny.recipe(), space))
    return space


def quantized(space: Workspace, *candidates: Any) -> Any:
    recipe = tiny.recipe(quantize={"gate": OPEN, "candidates": [one.model_dump() for one in candidates]})
    tiny.commit(space, "quantize", quantize.run(recipe, space))
    return recipe


@contextmanager
def served(
    recipe: Any, space: Workspace, files: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """The address, and a function that waits for the end and gives what came of it: figures, or an error."""
    came: list[Any] = []

    def work() -> None:
        try:
            came.extend(serve.serve(recipe, space, serve.Options(assets=files, idle_seconds=120), {}))
        except BaseException as error:
            came.append(error)

    urls: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(serve.console, "show_qr", urls.put)
    thread = threading.Thread(target=work)
    thread.start()
    url = urls.get(timeout=300)

    def result() -> list[Any]:
        thread.join(timeout=300)
        return came

    yield url, result


@pytest.mark.parametrize(
    "spec", [CANDIDATES["classifier"][0], WeightOnly(bits=4), WeightOnly(bits=8)], ids=lambda spec: spec.name
)
def test_what_our_quantizers_make_runs_in_a_browser(
    spec: Any, exported: Workspace, files: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quantized(exported, spec)
    with served(recipe, exported, files, monkeypatch) as (url, result):
        page = phone(chromium)
        page.goto(url)
        assert ended(page) == "done", page.inner_text("#lead")
        [found] = result()
    assert found.failures == []
    assert all(run.check.same for run in found.runs)


def test_a_graph_the_browser_cannot_run_is_told_on_the_page_and_here(
    exported: Workspace, files: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quantized(exported, CANDIDATES["classifier"][0])
    with served(recipe, exported, files, monkeypatch) as (url, result):
        page = phone(chromium)
        page.route("**/model.onnx", lambda route: route.fulfill(body=b"no graph at all", status=200))
        page.goto(url)
        assert ended(page) == "failed"
        assert "could not be run here" in page.inner_text("#lead")
        [error] = result()
    assert isinstance(error, UnavailableError)
    assert "could not be run" in str(error)
    assert "Can't create a session" in str(error) or "protobuf" in str(error).lower()


def test_another_answer_than_recorded_is_stored_and_fails(
    exported: Workspace, files: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quantized(exported, CANDIDATES["classifier"][0])
    read = serve.task.eval_table.read

    def turned(path: Path, ids: Any) -> dict[str, Any]:
        return {name: np.roll(values, 1, axis=1) for name, values in read(path, ids).items()}

    monkeypatch.setattr(serve.task.eval_table, "read", turned)
    before = len(devices.read(exported))
    with served(recipe, exported, files, monkeypatch) as (url, result):
        page = phone(chromium)
        page.goto(url)
        assert ended(page) == "done"
        [error] = result()
        assert page.inner_text("#headline") == "Done, but the answers differ"
    assert error.exit_code == 6
    assert len(devices.read(exported)) == before + 1
