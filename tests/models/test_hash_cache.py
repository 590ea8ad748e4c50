"""Hashes of large files: kept while a file is as it was, and never believed otherwise."""

import os

import pytest

from distillctl.errors import UnavailableError
from distillctl.models import hash_cache, model_source
from distillctl.run_dir import fingerprints


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The files that were read, in order; every file counts as large and as unchanged for long."""
    found = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "LEAST_BYTES", 0)
    monkeypatch.setattr(hash_cache, "SETTLED", 0)
    monkeypatch.setattr(
        hash_cache, "file_digest", lambda path: found.append(path.name) or fingerprints.file_digest(path)
    )
    return found


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "more" / "merges.txt").write_text("a b")
    return folder


def test_a_model_is_read_once_and_its_fingerprint_is_as_ever(read, model):
    source = model_source.ModelSource("model", model)
    expected = fingerprints.tree_digest(model)
    assert [source.fingerprint() for _ in range(3)] == [expected] * 3
    assert read == ["model.safetensors", "merges.txt"]


def test_a_single_file_is_read_once(read, model):
    path = model / "model.safetensors"
    assert [hash_cache.tree_digest(path) for _ in range(3)] == [fingerprints.file_digest(path)] * 3
    assert read == [path.name]


def _same_size_and_time(path):
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path):
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_same_size_and_time, _replaced, lambda path: path.write_bytes(b"short")])
def test_a_changed_file_is_read_again(read, model, change):
    before = hash_cache.tree_digest(model)
    change(model / "model.safetensors")
    assert hash_cache.tree_digest(model) == fingerprints.tree_digest(model) != before


def test_small_files_are_not_remembered(read, model, monkeypatch, tmp_path):
    monkeypatch.setattr(hash_cache, "LEAST_BYTES", 10)
    for _ in range(2):
        hash_cache.tree_digest(model)
    assert read == ["model.safetensors", "merges.txt", "merges.txt"]


def test_a_file_that_has_just_been_changed_is_not_remembered(read, model, monkeypatch):
    """A second change within the clock's step would leave the same times."""
    monkeypatch.setattr(hash_cache, "SETTLED", 3600)
    for _ in range(2):
        hash_cache.file_digests([model / "model.safetensors"])
    assert read == ["model.safetensors"] * 2


@pytest.mark.parametrize(
    "memory",
    ["", "[]", '{"files": 1}', "[" * 100_000, '{"files": {"x": [1]}}', '{"files": {"x": [1, 1, 1, 1, 1, "a"]}}', None],
)
def test_a_memory_that_is_damaged_is_not_believed(read, model, memory, tmp_path):
    expected = hash_cache.tree_digest(model)
    path = tmp_path / "cache" / "distillctl" / "hashes.json"
    path.unlink()
    os.mkfifo(path) if memory is None else path.write_text(memory)
    assert hash_cache.tree_digest(model) == expected
    assert read == ["model.safetensors", "merges.txt"] * 2


def test_without_a_cache_that_can_be_written_files_are_read_again(read, model, monkeypatch):
    def full(path, text):
        raise UnavailableError("full")

    monkeypatch.setattr(hash_cache, "write_text", full)
    assert hash_cache.tree_digest(model) == hash_cache.tree_digest(model)
    assert read == ["model.safetensors", "merges.txt"] * 2


def test_only_the_last_files_are_remembered(read, model, monkeypatch):
    monkeypatch.setattr(hash_cache, "_MOST_FILES", 1)
    for _ in range(2):
        hash_cache.tree_digest(model)
    assert read == ["model.safetensors", "merges.txt", "model.safetensors"]
