"""FIFOs, devices and sockets where files are expected: refused at once, and never waited for."""

import os
import shutil
import signal
import socket

import pytest

from distillctl import console
from distillctl.cli import app
from distillctl.models import checkpoint_files, gguf_header
from distillctl.run_dir.fingerprints import file_digest, tree_digest
from distillctl.soft_labels import checksum
from distillctl.teachers.openai import server_capabilities
from distillctl.untrusted import limits, regular_files
from tests.fixtures import project


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    project.make(folder, rows=24, data={"eval_rows": 8})
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    console.configure(as_json=False, verbosity=0)


@pytest.fixture(autouse=True)
def no_waiting():
    """What waits for a FIFO waits for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # its name may have 108 bytes
        one.bind(path.name)
        os.chdir(here)


KINDS = {
    "FIFO": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to a FIFO": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
}
TEMPLATE = "contexts.full={template_file: FILE}"
PLACES = {
    "rows.jsonl": (3, []),
    "other.csv": (3, ["data.source=other.csv"]),
    "other.parquet": (3, ["data.source=other.parquet"]),
    "other.jsonl.gz": (3, ["data.source=other.jsonl.gz"]),
    "other": (3, ["data.source=other"]),
    "recipe.yaml": (3, []),
    "template.jinja": (3, [TEMPLATE.replace("FILE", "template.jinja")]),
    "teacher/config.json": (5, []),
    "teacher/tokenizer.json": (5, []),
    "teacher/tokenizer_config.json": (5, []),
    "teacher/chat_template.jinja": (5, []),
    "teacher/model.safetensors": (5, []),
    "teacher/model.safetensors.index.json": (5, []),
    "teacher/README.md": (5, []),
    "student/model.safetensors": (5, []),
    "model.gguf": (3, ["teacher.model=model.gguf"]),
    "folder": (3, ["teacher.model=folder"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_no_command_waits(work, place, kind, capsys):
    code, sets = PLACES[place]
    (work / place).unlink(missing_ok=True)
    KINDS[kind](work / place)
    for command in (["status"], ["run", "--dry-run"], ["collect"], ["run"]):
        capsys.readouterr()
        words = [word for one in sets for word in ("--set", one)]
        with pytest.raises(SystemExit) as ended:
            app([command[0], "recipe.yaml", *words, *command[1:]], prog_name="distillctl")
        told = capsys.readouterr().err
        if command[0] == "status" and not ended.value.code:
            continue  # nothing is there yet, so that nothing was read
        if place.startswith("student/") and command[0] == "collect":
            continue  # which does not read it
        assert ended.value.code in (3, 5), (command, told)
        assert ended.value.code == code or code == 3, (command, told)
        assert told.count("error:") == 1
        assert ("a device or a pipe" if place == "recipe.yaml" else "not a regular file") in " ".join(told.split())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_that_is_none(tmp_path, kind, capsys):
    KINDS[kind](tmp_path / "bundle.zip")
    (tmp_path / "bundle").mkdir()
    KINDS[kind](tmp_path / "bundle" / "bundle.json")
    for name in ("bundle.zip", "bundle"):
        with pytest.raises(SystemExit) as ended:
            app(["bundle", "verify", str(tmp_path / name)], prog_name="distillctl")
        assert ended.value.code == 3
        assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_refuses(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    KINDS[kind](path)
    readers = [
        regular_files.opened,
        regular_files.check_regular,
        lambda path: regular_files.check_folder(path.parent),
        lambda path: limits.read_bytes(path, 10),
        file_digest,
        gguf_header.read,
        gguf_header.general,
        checksum.read_checked,
        lambda path: list(checkpoint_files.shapes(path.parent)),
    ]
    for reader in readers:
        with pytest.raises(regular_files.NotRegular, match="not a regular file"):
            reader(path)
    assert server_capabilities.read(path, "asked") is None
    tree_digest(tmp_path)  # what is no file is no part of a folder's content


def test_a_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with regular_files.opened(tmp_path / name) as file:
            assert file.read() == b"text"
    with pytest.raises(OSError, match="symbolic links"):
        regular_files.opened_in_place(tmp_path / "link")
