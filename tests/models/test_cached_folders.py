"""Folders in the user's cache: what is not as it was made is not used."""

import os

import pytest

from distillctl.models import cached_folders, hash_cache
from distillctl.models.cached_folders import RECORD, filling, is_whole, place


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cached_folders, "_warned", set())
    monkeypatch.setattr(hash_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(hash_cache, "SETTLED", 0)
    found = place("gguf", "0123")
    with filling(found) as staged:
        (staged / "model.safetensors").write_bytes(b"weights" * 100)
        (staged / "config.json").write_text("{}")
        (staged / "more").mkdir()
        (staged / "more" / "merges.txt").write_text("a b")
    return found


def _zeros_of_the_same_time(folder):
    path = folder / "model.safetensors"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _link(folder):
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def _fifo(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _fifo_for_the_record(folder):
    (folder / RECORD).unlink()
    os.mkfifo(folder / RECORD)


CHANGES = {
    "zeros": lambda folder: (folder / "model.safetensors").write_bytes(bytes(700)),
    "zeros, and the time as it was": _zeros_of_the_same_time,
    "cut": lambda folder: os.truncate(folder / "model.safetensors", 10),
    "gone": lambda folder: (folder / "more" / "merges.txt").unlink(),
    "a file more": lambda folder: (folder / "pytorch_model.bin").write_text("pickle"),
    "a link": _link,
    "a FIFO": _fifo,
    "no record": lambda folder: (folder / RECORD).unlink(),
    "a record that is cut": lambda folder: os.truncate(folder / RECORD, 20),
    "a record that is a list": lambda folder: (folder / RECORD).write_text("[]"),
    "a record nested deeply": lambda folder: (folder / RECORD).write_text("[" * 100_000),
    "a record without a checksum": lambda folder: (folder / RECORD).write_text('{"files": {}}'),
    "a record that is a FIFO": _fifo_for_the_record,
}


def test_what_was_made_is_whole_and_read_once(folder, monkeypatch):
    assert is_whole(folder)
    monkeypatch.setattr(hash_cache, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert is_whole(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_made_again(folder, change, capsys):
    assert is_whole(folder)
    CHANGES[change](folder)
    assert not is_whole(folder)
    told = " ".join(capsys.readouterr().err.split())
    assert "was changed" in told
    assert "made again" in told
    with filling(folder) as staged:
        (staged / "config.json").write_text("{}")
    assert is_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "config.json"]


def test_nothing_there_is_no_reason_to_warn(tmp_path, capsys):
    assert not is_whole(tmp_path / "nothing")
    assert capsys.readouterr().err == ""
