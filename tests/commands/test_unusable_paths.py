"""Places that cannot be read or written, and folders that go while a command is at work: one error, never a bug."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

from distillctl import cli
from distillctl.errors import UnavailableError, UsageError
from distillctl.run_dir import atomic_io
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.terminal import os_errors, streams
from tests.fixtures import project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    project.make(folder, rows=24, data={"eval_rows": 8})
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The project as the working directory, beside what is no folder and no recipe."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    os.mkfifo("fifo")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    os.mkdir("folder.yaml")
    for name, content in RECIPES.items():
        (folder / name).write_bytes(content)
    yield folder
    deep = [str(folder / name) for name in ("a", "abcdefghi")]  # too deep for what Python removes folders with
    subprocess.run(["rm", "-rf", *deep], check=False)


RECIPES = {
    "empty.yaml": b"",
    "blank.yaml": b" \n\n",
    "comments.yaml": b"# nothing\n",
    "null.yaml": b"null\n",
    "list.yaml": b"- a\n",
    "two.yaml": b"a: 1\n---\nb: 2\n",
    "latin1.yaml": "name: café\n".encode("latin-1"),
    "utf16.yaml": "name: a\n".encode("utf-16"),
    "binary.yaml": bytes(range(256)) * 20,
    "gzip.yaml": b"\x1f\x8b\x08\x00" + bytes(100),
    "huge.yaml": b"#" * (2 << 20),
    "nul.yaml": b'name: "a\\0b"\n',
    "deep.yaml": b"student: {kind: from_config, config: " + b"{a: " * 400 + b"1" + b"}" * 400 + b"}\n",
}


def fails(capsys, code, *args):
    """Run the command in this process; returns its one error."""
    with pytest.raises(SystemExit) as ended:
        cli.app([*args], prog_name="distillctl")
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    assert len(re.findall("error:|─ Error ─", said.err)) == 1, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


NO_RUN_DIRECTORY = {
    "/proc/x": 5,
    "/proc/self/x": 5,
    "/dev/null": 5,
    "/dev/full": 5,
    "/dev/null/x": 5,
    "recipe.yaml": 5,
    "recipe.yaml/x": 5,
    "dangling": 5,
    "loop": 5,
    "loop/x": 5,
    "fifo": 5,
    "x" * 300: 5,
    "abcdefghi/" * 420: 5,
    "a/" * 2040: 5,
    "b\udcff": 2,
    "a\0b": 2,
}


@pytest.mark.parametrize("place", NO_RUN_DIRECTORY, ids=lambda place: ascii(place[:20]))
def test_no_stage_runs_in_what_cannot_be_a_run_directory(here, capsys, place):
    before = sorted(os.listdir())
    fails(capsys, NO_RUN_DIRECTORY[place], "collect", "recipe.yaml", "--run-dir", place)
    assert [name for name in sorted(os.listdir()) if len(name) > 1] == [name for name in before if len(name) > 1]


@pytest.mark.parametrize(
    "place", ["/dev/null", "recipe.yaml", "dangling", "loop", "fifo", "b\udcff", "a\0b"], ids=ascii
)
def test_what_is_no_folder_is_told_before_anything_else(here, capsys, place):
    for command in (["status"], ["run", "--dry-run"], ["report"], ["bench", "--against", "elsewhere"]):
        fails(capsys, NO_RUN_DIRECTORY[place], *command, "recipe.yaml", "--run-dir", place)


NO_RECIPE = [*RECIPES, "folder.yaml", ".", "", "/dev/null", "/dev/full", "/proc/self/mem", "fifo", "loop", "dangling",
             "nowhere.yaml", "rows.jsonl/x", "x" * 300, "abcdefghi/" * 420]  # fmt: skip


@pytest.mark.parametrize("path", NO_RECIPE, ids=lambda path: path[:20])
def test_what_is_no_recipe(here, capsys, path):
    told = fails(capsys, 3, "status", path)
    assert "[Errno" not in told
    assert "codec" not in told


@pytest.mark.parametrize("path", ["b\udcff.yaml", "a\0b"], ids=ascii)
def test_what_is_no_path(here, capsys, path):
    fails(capsys, 2, "status", path)
    fails(capsys, 2, "init", path)
    fails(capsys, 2, "bundle", "verify", path)


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null", "recipe.yaml", "loop", "x" * 300, "abcdefghi/" * 420])
def test_init_and_verify_elsewhere(here, capsys, place):
    fails(capsys, 5, "init", place)
    told = fails(capsys, 5 if len(place) > 200 else 3, "bundle", "verify", place)
    assert "[Errno" not in told


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null", "fifo", "."])
def test_a_device_is_never_replaced_by_a_file(here, place):
    """`--junit /dev/full` once put a file in the place of the device."""
    before = os.stat(place).st_mode
    with pytest.raises(UnavailableError):
        atomic_io.write_text(here / place, "x")
    assert os.stat(place).st_mode == before


# ── folders that go ──────────────────────────────────────────────────────────────────────────────

ACTIONS = {
    "the run directory is removed": lambda: shutil.rmtree("run"),
    "it is moved": lambda: os.rename("run", "moved"),
    "it is empty again": lambda: (shutil.rmtree("run"), os.mkdir("run")),
    "it is a copy": lambda: (os.rename("run", "moved"), shutil.copytree("moved", "run")),
    "the working directory is removed": lambda: shutil.rmtree(os.getcwd()),
    "the working directory was another one": lambda: (os.mkdir("gone"), os.chdir("gone"), os.rmdir("../gone")),
}


def _act_while_rows_are_scored(action: str) -> None:
    from distillctl.teachers import label_scoring

    score, acted = label_scoring.score, []

    def acting(*args, **kwargs):
        if not acted:
            acted.append(ACTIONS[action]())
        return score(*args, **kwargs)

    label_scoring.score = acting


@pytest.mark.parametrize("action", ACTIONS)
def test_a_folder_that_goes_while_a_stage_runs(here, action):
    is_relative = action != "the working directory was another one"
    recipe, run = ("recipe.yaml", "run") if is_relative else (here / "recipe.yaml", here / "run")
    prepare = functools.partial(_act_while_rows_are_scored, action)
    done = project.run("collect", recipe, "--run-dir", run, prepare=prepare)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:  # what it needs of the working directory it had read before
        assert not is_relative
        return
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("error:") == 1
    assert "was removed" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "args", [["status", "recipe.yaml"], ["collect", "/tmp/recipe.yaml"], ["doctor"], ["init", "x"]]
)
def test_a_working_directory_that_is_gone_from_the_start(tmp_path, args):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -m distillctl {' '.join(args)}"
    done = subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, text=True, env=project.environment(), check=False
    )
    assert done.returncode in (3, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


def test_outputs_that_are_gone_are_not_committed(tmp_path):
    workspace = Workspace(tmp_path)
    asked = {"recipe": {}, "inputs": {}, "seed": 0, "seconds": 1.0}
    with pytest.raises(UnavailableError, match="was removed while the stage ran"):
        workspace.commit("train", outcome=StageOutput(["metrics.jsonl"], Facts()), **asked)
    assert workspace.manifest("train") is None


# ── errors of the operating system ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", os_errors._NEXT)
def test_errors_of_the_system_are_told_with_a_way_out(number):
    told = os_errors.explained(OSError(number, os.strerror(number), "some/file"))
    assert told is not None
    assert (told.where, told.what, told.exit_code) == ("some/file", os.strerror(number), 5)
    assert told.next


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(2, "No such file", "x"), KeyError("x")])
def test_what_may_be_our_mistake_is_a_bug(error):
    assert os_errors.explained(error) is None


def test_text_that_is_no_path_in_the_locale():
    with pytest.raises(UnicodeEncodeError) as error:
        "donn\ud800es".encode(sys.getfilesystemencoding())
    told = os_errors.explained(error.value)
    assert told is not None
    assert told.exit_code == 5
    with pytest.raises(UsageError):
        os_errors.check_paths([None, 1, os_errors.Path("\udcff")])


def test_a_stream_drops_what_it_cannot_write_and_remembers_why():
    with open("/dev/full", "wb") as full:
        stream = streams._stream(full.fileno(), None)
        for _ in range(3):
            stream.write("text")
            stream.flush()
        assert streams._guarded.pop(full.fileno()).failure.errno == 28


def test_a_terminal_that_someone_made_non_blocking_is_waited_for():
    import fcntl
    import threading

    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    stream = streams._stream(writer, None)
    found = []

    def read():
        while part := os.read(reader, 65536):
            found.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    stream.write("x" * 1_000_000)
    stream.flush()
    assert streams._guarded.pop(writer).failure is None
    os.close(writer)
    thread.join()
    os.close(reader)
    assert sum(map(len, found)) == 1_000_000
