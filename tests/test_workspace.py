"""Manifests, fingerprints and atomic writes."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl import workspace as workspace_module
from distillctl.errors import Unavailable, UpstreamError
from distillctl.workspace import (
    Outcome,
    Workspace,
    digest,
    make_folder,
    replacing,
    replacing_folder,
    tree_digest,
    writable,
    write_text,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda leaf: st.lists(leaf, max_size=4) | st.dictionaries(st.text(max_size=4), leaf, max_size=4),
    max_leaves=10,
)


def commit(workspace, text="hello", facts=None, **changes):
    folder = workspace.folder("collect")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "a.txt", text)
    asked = {"recipe": {"x": 1}, "inputs": {"data": "1"}, "seed": 0, "seconds": 1.0} | changes
    return workspace.commit("collect", outcome=Outcome(["a.txt"], facts or {}), **asked)


@given(values, values)
def test_digest_is_canonical_and_tells_values_apart(a, b):
    assert digest(a) == digest(json.loads(json.dumps(a)))
    if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
        assert digest(a) != digest(b)


def test_digest_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="Out of range"):
        digest(float("nan"))


def test_tree_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = tree_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = tree_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, tree_digest(tmp_path)}) == 3


def test_a_manifest_reads_back_and_its_fingerprint_leaves_times_out(tmp_path):
    workspace = Workspace(tmp_path)
    manifest = commit(workspace)
    assert workspace.manifest("collect") == manifest
    assert commit(workspace, seconds=9.0).fingerprint == manifest.fingerprint
    for change in ({"recipe": {"x": 2}}, {"inputs": {"data": "2"}}, {"seed": 1}, {"text": "other"}):
        assert commit(workspace, **change).fingerprint != manifest.fingerprint


@given(st.integers(0, 4), st.integers(0, 255))
def test_any_flipped_byte_is_damage(tmp_path_factory, place, value):
    workspace = Workspace(tmp_path_factory.mktemp("run"))
    manifest = commit(workspace)
    path = workspace.folder("collect") / "a.txt"
    data = bytearray(path.read_bytes())
    changed = data[place] != value
    data[place] = value
    path.write_bytes(data)
    assert (workspace.damage("collect", manifest) is not None) == changed


def test_gone_and_unreadable(tmp_path):
    workspace = Workspace(tmp_path)
    assert workspace.manifest("collect") is None
    manifest = commit(workspace)
    (tmp_path / "collect" / "a.txt").unlink()
    assert "a.txt is gone" in workspace.damage("collect", manifest)
    (tmp_path / "collect" / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(UpstreamError, match="damaged"):
        workspace.manifest("collect")


def _half_written(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text("half")
    raise ZeroDivisionError


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        _half_written(temporary)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_fails_leaves_the_old_folder(tmp_path):
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "f") as temporary:
        _half_written(temporary / "b")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["a"]
    with replacing_folder(tmp_path / "f") as temporary:
        (temporary / "b").write_text("new")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["b"]
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        write_text(tmp_path / "file" / "x", "text")


def test_what_a_kill_left_half_written_is_swept_and_what_was_set_aside_comes_back(tmp_path):
    workspace = Workspace(tmp_path)
    manifest = commit(workspace)
    (tmp_path / "collect" / ".x.1.tmp").write_text("half")
    (tmp_path / ".collect.abc.tmp").mkdir()
    (tmp_path / "collect").rename(tmp_path / ".collect.aside")
    (tmp_path / "collect").mkdir()
    (tmp_path / "collect" / "partial").write_text("half")
    workspace.sweep()
    assert workspace.manifest("collect") == manifest
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "collect", "manifest.json"]


def test_anew_keeps_the_old_until_the_new_is_whole(tmp_path):
    workspace = Workspace(tmp_path)
    manifest = commit(workspace)
    with pytest.raises(ZeroDivisionError), workspace.anew("collect"):
        _half_written(tmp_path / "collect" / "b")
    assert workspace.manifest("collect") == manifest
    with workspace.anew("collect"):
        assert not workspace.folder("collect").exists()
        new = commit(workspace, text="new")
    assert workspace.manifest("collect") == new
    assert os.listdir(tmp_path) == ["collect"]


def test_a_stage_that_is_made_anew_may_have_scratch_in_its_folder(tmp_path):
    workspace = Workspace(tmp_path)
    old = commit(workspace)
    with pytest.raises(ZeroDivisionError), workspace.anew("collect"):
        _fail_after_scratch(workspace)
    assert workspace.manifest("collect") == old
    assert workspace.damage("collect", old) is None
    with workspace.anew("collect"):
        _scratch_then_new(workspace)
        new = commit(workspace, text="new")
    assert workspace.manifest("collect") == new
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "collect", "manifest.json"]


def _fail_after_scratch(workspace):
    _scratch_then_new(workspace)
    raise ZeroDivisionError


def _scratch_then_new(workspace):
    workspace.folder("collect").mkdir()
    (workspace.folder("collect") / "scratch").write_text("rows")
    with replacing_folder(workspace.folder("collect")) as temporary:
        (temporary / "a.txt").write_text("new")


def test_a_committed_stage_outlasts_the_making_of_its_successor(tmp_path):
    workspace = Workspace(tmp_path)
    old = commit(workspace)
    for _ in range(2):
        with replacing_folder(workspace.folder("collect")) as temporary:
            (temporary / "a.txt").write_text("new")
        assert workspace.manifest("collect") is None
        workspace.sweep()  # a kill came before the commit
        assert workspace.manifest("collect") == old
        assert workspace.damage("collect", old) is None
    with replacing_folder(workspace.folder("collect")) as temporary:
        (temporary / "b.txt").write_text("new")
    new = commit(workspace, text="new")
    workspace.sweep()
    assert workspace.manifest("collect") == new
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "b.txt", "collect", "manifest.json"]


def test_a_folder_in_a_stage_is_put_back_only_where_nothing_took_its_place(tmp_path):
    for there in (False, True):
        model, aside = tmp_path / "train" / "model", tmp_path / "train" / ".model.aside"
        aside.mkdir(parents=True)
        (aside / "old").write_text("")
        if there:
            model.rename(tmp_path / "train" / "gone")
            model.mkdir()
            (model / "new").write_text("")
        Workspace(tmp_path).sweep()
        assert [p.name for p in model.iterdir()] == ["new" if there else "old"]
        assert not aside.exists()


def test_new_folders_are_fsynced_into_those_above(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(workspace_module, "sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_an_error_of_a_scratch_file_elsewhere_names_it(tmp_path):
    scratch = "/somewhere/else/x"
    with pytest.raises(Unavailable, match="No space left") as raised, writable(tmp_path / "run" / "export"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), scratch)
    assert raised.value.where == scratch
    assert "TMPDIR" in raised.value.next
