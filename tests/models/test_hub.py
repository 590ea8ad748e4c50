"""Without a network: one error soon, with what to set instead, and no lines of the libraries that would have tried."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from distillctl.errors import UnavailableError
from distillctl.models import hub
from distillctl.models.model_source import ModelSource
from tests.fixtures import project

pytestmark = pytest.mark.slow

SOON = 10.0
"""Seconds until the error, on a machine that has nothing else to do."""
LIBRARIES = (
    "Retry",
    "retry",
    "thrown while",
    "urllib3",
    "httpx",
    "huggingface_hub",
    "MaxRetry",
    "Traceback",
    "datasets.",
)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers, as an address behind a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


NO_NETWORK = {
    "proxy-refuses": {"HTTPS_PROXY": "http://127.0.0.1:9"},
    "proxy-of-another-scheme": {"HTTPS_PROXY": "junk://joe:hunter2@proxy:1"},
    "mirror-refuses": {"HF_ENDPOINT": "http://joe:hunter2@127.0.0.1:9"},
    "mirror-without-a-name": {"HF_ENDPOINT": "http://mirror.invalid"},
    "mirror-that-is-no-address": {"HF_ENDPOINT": "nonsense"},
    "mirror-never-answers": {"HF_ENDPOINT": "@silent@"},
    "proxy-never-answers": {"HTTPS_PROXY": "@silent@"},
    "offline-by-choice": {"HF_HUB_OFFLINE": "1"},
}


def run(tmp_path: Path, variables: dict[str, str], *words: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command, and its seconds less those that an empty Python takes now: the machine may be busy."""
    cleared = ("HF_", "HTTP", "http", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "CI")
    environment = {name: value for name, value in project.environment().items() if not name.startswith(cleared)}
    environment |= {"HF_HOME": str(tmp_path / "hub"), **variables}
    begun = time.monotonic()
    done = subprocess.run(
        project.command(*words), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    return done, time.monotonic() - begun


def told(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The one error and what to do next."""
    lines = done.stderr.splitlines()
    [error] = [line for line in lines if line.startswith("error:")]
    [then] = [line for line in lines if line.startswith("next:")]
    assert done.returncode == 5, done.stderr
    assert not [line for line in lines for word in LIBRARIES if word in line], done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    return error, then


@pytest.mark.parametrize("name", NO_NETWORK)
def test_the_starter_recipe(tmp_path: Path, silent: str, name: str) -> None:
    assert run(tmp_path, {}, "init", "starter")[0].returncode == 0
    variables = {key: value.replace("@silent@", silent) for key, value in NO_NETWORK[name].items()}
    done, seconds = run(tmp_path, variables, "run", "starter/recipe.yaml", "--run-dir", "run")
    error, then = told(done)
    assert error.startswith("error: teacher.model: HuggingFaceTB/SmolLM2-135M-Instruct cannot be loaded: it is not on")
    assert "neither is student.model, sentence-transformers/all-MiniLM-L6-v2" in error
    assert "set teacher.model and student.model to a local folder, a .gguf file or package:NAME/path" in then
    assert "HF_ENDPOINT" in then
    assert seconds < SOON + 10 * os.getloadavg()[0] / (os.cpu_count() or 1)


HERE = {
    "teacher": ("teacher.model", {"teacher": {"model": "no/where"}}, ["collect"]),
    "student": ("student.model", {"student": {"kind": "pretrained", "model": "no/where"}}, ["run"]),
    "tokenizer": ("student.tokenizer",
                  {"student": {"kind": "from_config", "model_type": "bert", "tokenizer": "no/where"}}, ["run"]),
    "data": ("data.source", {"data": {"source": "no/where", "format": "hub"}}, ["run"]),
    "data-in-the-plan": ("data.source", {"data": {"source": "no/where", "format": "hub"}}, ["run", "--dry-run"]),
    "data-train": ("data.train", {"data": {"train": "no/where", "eval": "no/there"}}, ["collect"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HERE)
def test_each_of_a_recipes_hub_references(tmp_path: Path, name: str) -> None:
    key, sections, (command, *options) = HERE[name]
    path = project.make(tmp_path)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
    done, _ = run(tmp_path, {"HTTPS_PROXY": "http://127.0.0.1:9"}, command, path, "--run-dir", "run", *options)
    error, then = told(done)
    assert error.startswith(f"error: {key}: ")
    assert "not on this machine, and the hub (huggingface.co) cannot be reached: " in error
    assert f"set {key} to " in then


def test_what_needs_no_hub_does_not_ask_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("asked"))
    hub.require({"teacher.model": ModelSource("x", tmp_path), "student.model": None})


def test_models_that_are_here_are_used_without_the_hub(tmp_path: Path) -> None:
    """In a process of its own, for it is told to stay off the network."""
    code = """
import json, os, sys
from pathlib import Path
from distillctl.models import hub
from distillctl.models.model_source import ModelSource
cached = Path(os.environ["HF_HOME"]) / "hub" / "models--no--where"
(cached / "snapshots" / "abc").mkdir(parents=True)
(cached / "snapshots" / "abc" / "config.json").write_text("{}")
(cached / "refs").mkdir()
(cached / "refs" / "main").write_text("abc")
hub.require({"teacher.model": ModelSource("no/where", None)})
from huggingface_hub import is_offline_mode
print(json.dumps([os.environ["HF_HUB_OFFLINE"], is_offline_mode(), "torch" in sys.modules]))
"""
    environment = {**project.environment(), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["1", True, False]
    assert "files on this machine are used" in done.stderr
    shutil.rmtree(tmp_path / "hub")


def test_a_hub_that_answers_is_left_to_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    hub.require({"teacher.model": ModelSource("no/where", None)})
    assert "no data set" in str(hub.no_data_set("a/b", ValueError("gone"), "data.source"))


@pytest.mark.parametrize(("status", "reached"), [(200, True), (404, True), (401, True), (302, True), (503, False)])
def test_any_answer_but_a_failing_gateways_is_one(monkeypatch: pytest.MonkeyPatch, status: int, reached: bool) -> None:
    class Session:
        def head(self, url: str, **_: object) -> object:
            return type("Answer", (), {"status_code": status})

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    assert (hub._ask("http://mirror", 5) is None) == reached


def test_all_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: "there is no network")
    models = {"teacher.model": ModelSource("no/where", None), "student.model": ModelSource("x", tmp_path)}
    with pytest.raises(UnavailableError) as error:
        hub.require(models | {"teacher.tokenizer": ModelSource("no/there", None)})
    assert error.value.where == "teacher.model"
    assert error.value.next.startswith("set teacher.model and teacher.tokenizer to a local folder")
