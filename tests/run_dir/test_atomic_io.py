"""Durable writes where a file system or a stranger makes them hard: EXDEV, links, FIFOs."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from distillctl.errors import UnavailableError
from distillctl.run_dir import atomic_io
from distillctl.run_dir.atomic_io import MOVED, move, open_to_append, replacing_folder, set_aside_name, write_text
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace


def commit(workspace, text):
    write_text(workspace.folder("train") / "model" / "weights", text)
    outcome = StageOutput(["model"], Facts())
    return workspace.commit("train", recipe={}, inputs={}, outcome=outcome, seed=0, seconds=1.0)


@pytest.fixture(params=["simulated", "an overlay"])
def lower_layer(request, tmp_path, monkeypatch):
    """A committed run directory, none of whose folders can be renamed: those of a Docker image's layer."""
    if request.param == "an overlay":
        for name in ("lower", "upper", "work", "merged"):
            (tmp_path / name).mkdir()
        with Workspace(tmp_path / "lower" / "run").lock():
            commit(Workspace(tmp_path / "lower" / "run"), "old")
        options = ",".join(f"{name}={tmp_path / name[:-3]}" for name in ("lowerdir", "upperdir", "workdir"))
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "merged"]
        try:
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                pytest.skip("no overlay can be mounted here")
            yield tmp_path / "merged" / "run"
        finally:
            subprocess.run(["umount", tmp_path / "merged"], capture_output=True, check=False)
        return
    with Workspace(tmp_path / "run").lock():
        commit(Workspace(tmp_path / "run"), "old")
    lower = {path.stat().st_ino for path in tmp_path.rglob("*") if path.is_dir()}
    replace = os.replace

    def of_an_overlay(source, target):
        if os.stat(source).st_ino in lower and os.path.isdir(source):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", of_an_overlay)
    yield tmp_path / "run"


def _refused(path):
    with pytest.raises(OSError, match="cross-device"):
        os.replace(path, path.with_name("renamed"))


@pytest.mark.parametrize("how", ["again", "a folder of it", "all of it"])
def test_a_stage_of_a_lower_layer_can_be_made_again(lower_layer, how):
    workspace = Workspace(lower_layer)
    _refused(workspace.folder("train"))
    with workspace.lock():
        if how == "again":
            with workspace.rerun("train"):
                assert not workspace.folder("train").exists()
                new = commit(workspace, "new")
        else:
            path = workspace.folder("train") / ("model" if how == "a folder of it" else "")
            with replacing_folder(path) as staged:
                weights = staged / ("" if how == "a folder of it" else "model") / "weights"
                weights.parent.mkdir(exist_ok=True)
                weights.write_text("new")
            new = commit(workspace, "new")
    assert workspace.manifest("train") == new
    assert (workspace.folder("train") / "model" / "weights").read_text() == "new"
    assert _names(lower_layer) == ["model", "manifest.json", "weights"]


def test_what_was_there_comes_back_when_the_new_one_fails(lower_layer):
    workspace = Workspace(lower_layer)
    old = workspace.manifest("train")
    with workspace.lock(), pytest.raises(ZeroDivisionError), workspace.rerun("train"):
        _fail(workspace.folder("train") / "model")
    assert workspace.manifest("train") == old
    assert workspace.damage("train", old) is None
    assert _names(lower_layer) == ["model", "manifest.json", "weights"]


def _fail(folder):
    folder.mkdir(parents=True)
    raise ZeroDivisionError


def _names(root):
    found = (root / "train").rglob("*")
    assert not [path for path in root.rglob("*") if path.suffix in (".tmp", ".aside")]
    return [path.name for path in sorted(found, key=lambda path: (len(path.parts), path.is_file(), path.name))]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 16))
def test_a_kill_at_any_step_of_the_copy_loses_nothing(tmp_path, monkeypatch, at):
    """What is there afterwards is the old, whole, or, once the new one was committed, the new."""
    workspace = Workspace(tmp_path / "run")
    with workspace.lock():
        old = commit(workspace, "old")
    lower = (tmp_path / "run" / "train").stat().st_ino
    count = 0

    def step(original, name):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                monkeypatch.undo()
                raise Killed
            if name == "replace" and os.stat(args[0]).st_ino == lower:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), args[0])
            return original(*args, **kwargs)

        return call

    with workspace.lock():
        for name in ("replace", "fsync", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, step(getattr(os, name), name))
        try:
            move(workspace.folder("train"), set_aside_name(workspace.folder("train")))
        except Killed:
            pass
        else:
            assert count < at
        monkeypatch.undo()
    with workspace.lock():
        assert workspace.manifest("train") == old
        assert workspace.damage("train", old) is None
        assert _names(tmp_path / "run") == ["model", "manifest.json", "weights"]


def test_half_of_what_was_moved_is_removed_at_the_next_opening(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.lock():
        old = commit(workspace, "old")
        shutil.copytree(workspace.folder("train"), set_aside_name(workspace.folder("train")))
        (workspace.folder("train") / MOVED).touch()
        (workspace.folder("train") / "model" / "weights").unlink()
    with workspace.lock():
        assert workspace.manifest("train") == old
        assert workspace.damage("train", old) is None
        assert not (workspace.folder("train") / MOVED).exists()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY, errno.ELOOP, errno.ENOTEMPTY, errno.ENAMETOOLONG])
def test_what_cannot_be_renamed_is_told(tmp_path, monkeypatch, code):
    """Such as a single file that Docker mounted."""

    def refuse(source, target):
        raise OSError(code, os.strerror(code), source)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UnavailableError, match="cannot be written") as raised:
        write_text(tmp_path / "report.html", "text")
    assert raised.value.where == str(tmp_path / "report.html")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


# ── files that grow where they are ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to itself", "FIFO", "folder"])
def test_nothing_is_appended_to_what_is_no_file(tmp_path, kind):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "other"
    other.write_text("mine")
    {
        "link": lambda: path.symlink_to(other),
        "dangling link": lambda: path.symlink_to(tmp_path / "new"),
        "link to itself": lambda: path.symlink_to(path),
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(UnavailableError, match="cannot be written"), atomic_io.writable(path):
        open_to_append(path)
    assert other.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_file_with_two_names_is_copied_before_it_grows(tmp_path):
    path, other = tmp_path / "answers.jsonl", tmp_path / "backup.jsonl"
    path.write_text("one\n")
    os.link(path, other)
    descriptor = open_to_append(path)
    os.write(descriptor, b"two\n")
    os.close(descriptor)
    assert (path.read_text(), other.read_text()) == ("one\ntwo\n", "one\n")
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "backup.jsonl"]


def test_temporary_names_cannot_be_foreseen(tmp_path):
    names = {atomic_io.temporary_name(tmp_path / "x").name for _ in range(100)}
    assert len(names) == 100
    assert all(Path(name).suffix == ".tmp" and name.startswith(".x.") for name in names)
