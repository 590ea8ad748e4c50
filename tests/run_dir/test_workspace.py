"""Manifests, fingerprints and atomic writes."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.errors import UnavailableError, UpstreamError
from distillctl.run_dir import atomic_io, run_marker
from distillctl.run_dir.atomic_io import owned_by, set_aside_name, temporary_name
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import (
    StageOutput,
    Workspace,
    digest,
    make_folder,
    replacing,
    replacing_folder,
    tree_digest,
    writable,
    write_text,
)
from tests.fixtures import manifests

TOKEN = "0123456789abcdef"
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
    return workspace.commit("collect", outcome=StageOutput(["a.txt"], Facts.model_validate(facts or {})), **asked)


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
    with pytest.raises(UnavailableError):
        write_text(tmp_path / "file" / "x", "text")


def test_what_a_kill_left_half_written_is_swept_and_what_was_set_aside_comes_back(tmp_path):
    workspace = Workspace(tmp_path)
    manifest = commit(workspace)
    with owned_by(TOKEN):
        temporary_name(tmp_path / "collect" / "x").write_text("half")
        temporary_name(tmp_path / "collect").mkdir()
        (tmp_path / "collect").rename(set_aside_name(tmp_path / "collect"))
        (tmp_path / "collect").mkdir()
        (tmp_path / "collect" / "partial").write_text("half")
        workspace.sweep(TOKEN)
    assert workspace.manifest("collect") == manifest
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "collect", "manifest.json"]


def test_rerun_keeps_the_old_until_the_new_is_whole(tmp_path):
    workspace = Workspace(tmp_path)
    manifest = commit(workspace)
    with pytest.raises(ZeroDivisionError), workspace.rerun("collect"):
        _half_written(tmp_path / "collect" / "b")
    assert workspace.manifest("collect") == manifest
    with workspace.rerun("collect"):
        assert not workspace.folder("collect").exists()
        new = commit(workspace, text="new")
    assert workspace.manifest("collect") == new
    assert os.listdir(tmp_path) == ["collect"]


def test_a_stage_that_is_made_again_may_have_scratch_in_its_folder(tmp_path):
    workspace = Workspace(tmp_path)
    old = commit(workspace)
    with pytest.raises(ZeroDivisionError), workspace.rerun("collect"):
        _fail_after_scratch(workspace)
    assert workspace.manifest("collect") == old
    assert workspace.damage("collect", old) is None
    with workspace.rerun("collect"):
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
    with owned_by(TOKEN):
        _outlasts(workspace, tmp_path)


def _outlasts(workspace, tmp_path):
    old = commit(workspace)
    for _ in range(2):
        with replacing_folder(workspace.folder("collect")) as temporary:
            (temporary / "a.txt").write_text("new")
        assert workspace.manifest("collect") is None
        workspace.sweep(TOKEN)  # a kill came before the commit
        assert workspace.manifest("collect") == old
        assert workspace.damage("collect", old) is None
    with replacing_folder(workspace.folder("collect")) as temporary:
        (temporary / "b.txt").write_text("new")
    new = commit(workspace, text="new")
    workspace.sweep(TOKEN)
    assert workspace.manifest("collect") == new
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "b.txt", "collect", "manifest.json"]


def test_a_folder_in_a_stage_is_put_back_only_where_nothing_took_its_place(tmp_path):
    for there in (False, True):
        model, aside = tmp_path / "train" / "model", tmp_path / "train" / f".model.{TOKEN}.aside"
        aside.mkdir(parents=True)
        (aside / "old").write_text("")
        if there:
            model.rename(tmp_path / "train" / "gone")
            model.mkdir()
            (model / "new").write_text("")
        with owned_by(TOKEN):
            Workspace(tmp_path).sweep(TOKEN)
        assert [p.name for p in model.iterdir()] == ["new" if there else "old"]
        assert not aside.exists()


def test_new_folders_are_fsynced_into_those_above(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic_io, "sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_an_error_of_a_scratch_file_elsewhere_names_it(tmp_path):
    scratch = "/somewhere/else/x"
    with pytest.raises(UnavailableError, match="No space left") as raised, writable(tmp_path / "run" / "export"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), scratch)
    assert raised.value.where == scratch
    assert "TMPDIR" in raised.value.next


# ── what a manifest says of itself ───────────────────────────────────────────────────────────────


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_no_byte_of_a_manifest_changes_unseen(tmp_path_factory, place, mask):
    workspace = Workspace(tmp_path_factory.mktemp("run"))
    commit(workspace, facts={"arms": {"student": {"score": 0.725, "low": 0.7, "high": 0.75, "n": 9, "metric": "m"}}})
    path = workspace.folder("collect") / "manifest.json"
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= mask
    path.write_bytes(raw)
    with pytest.raises(UpstreamError, match=r"collect/manifest\.json: the manifest is damaged") as raised:
        workspace.manifest("collect")
    assert raised.value.next == "distillctl collect RECIPE"


def test_a_manifest_of_an_older_version_is_read(tmp_path):
    workspace = Workspace(tmp_path)
    new = commit(workspace)
    path = workspace.folder("collect") / "manifest.json"
    document = json.loads(path.read_text())
    for key in ("checksum", "keeps", "scratch"):
        del document[key]
    path.write_text(json.dumps(document, indent=2) + "\n")
    old = workspace.manifest("collect")
    assert (old.checksum, old.fingerprint) == (None, new.fingerprint)
    assert workspace.damage("collect", old) is None


def test_what_is_kept_for_the_next_run_is_verified_and_no_part_of_the_fingerprint(tmp_path):
    workspace = Workspace(tmp_path)
    bare = commit(workspace)
    (workspace.folder("collect") / "served").mkdir()
    for content in ("1", "2"):
        write_text(workspace.folder("collect") / "served" / "answers.jsonl", content)
        manifest = commit(workspace, keeps=["served/answers.jsonl", "served/grants.json"])
        assert manifest.fingerprint == bare.fingerprint
        assert list(manifest.keeps) == ["served/answers.jsonl"]
        assert workspace.damage("collect", manifest) is None
    write_text(workspace.folder("collect") / "served" / "answers.jsonl", "3")
    assert "collect/served/answers.jsonl is damaged" in workspace.damage("collect", manifest)


def test_files_that_a_stage_did_not_commit_are_named(tmp_path):
    workspace = Workspace(tmp_path)
    folder = workspace.folder("collect")
    manifest = commit(workspace)
    assert workspace.strangers("collect", manifest) == []
    (folder / "served").mkdir()
    for name in ("served/failed.jsonl", ".DS_Store", "b.txt"):
        (folder / name).write_text("")
    assert workspace.strangers("collect", manifest) == ["collect/b.txt"]


# ── checkpoints of a run that is done ────────────────────────────────────────────────────────────

LOCKED = "".join(f"{key}: x\n" for key in run_marker._SECTIONS)
CHECKPOINT = f"checkpoints/student-{'0' * 16}-step-000003"


def _checkpoints(workspace, *names):
    for name in names:
        path = workspace.folder("collect") / name
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text("weights")


def test_they_go_with_the_commit_and_nothing_else_does(tmp_path):
    workspace = Workspace(tmp_path)
    mine = ("checkpoints/student-best-step-3", "checkpoints/notes", f"{CHECKPOINT}-copy")
    _checkpoints(workspace, CHECKPOINT, f"{CHECKPOINT}1-damaged", *mine)
    manifest = commit(workspace)
    assert manifest.scratch == (CHECKPOINT, f"{CHECKPOINT}1-damaged")
    assert sorted(path.name for path in (workspace.folder("collect") / "checkpoints").iterdir()) == sorted(
        name.removeprefix("checkpoints/") for name in mine
    )
    assert len(workspace.strangers("collect", manifest)) == 3


def test_a_kill_between_commit_and_removal_leaves_nothing_at_the_next_opening(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    _checkpoints(workspace, CHECKPOINT)
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "_discard", lambda *_: None)
        manifest = commit(workspace)
    assert (workspace.folder("collect") / CHECKPOINT).exists()
    assert workspace.damage("collect", manifest) is None
    assert workspace.strangers("collect", manifest) == []
    with workspace.lock():
        assert not (workspace.folder("collect") / "checkpoints").exists()
    assert workspace.manifest("collect") == manifest


def test_those_of_an_unfinished_run_stay(tmp_path):
    workspace = Workspace(tmp_path)
    with workspace.lock():
        commit(workspace)
        workspace.invalidate("collect")
        _checkpoints(workspace, CHECKPOINT)
    with workspace.lock():
        assert (workspace.folder("collect") / CHECKPOINT).exists()


def test_a_link_is_not_followed_and_a_strange_name_is_refused(tmp_path):
    workspace = Workspace(tmp_path / "run")
    (tmp_path / "elsewhere" / CHECKPOINT).mkdir(parents=True)
    workspace.folder("collect").mkdir(parents=True)
    (workspace.folder("collect") / "checkpoints").symlink_to(tmp_path / "elsewhere" / "checkpoints")
    commit(workspace)
    assert (tmp_path / "elsewhere" / CHECKPOINT).exists()
    path = workspace.folder("collect") / "manifest.json"
    for name in ("model", "../train", f"../{CHECKPOINT}", "checkpoints/..", "/tmp", f"{CHECKPOINT}/.."):
        manifests.write(path, json.loads(path.read_text()) | {"scratch": [name]})
        with pytest.raises(UpstreamError, match="damaged"):
            workspace.manifest("collect")


def test_a_fact_that_an_older_version_did_not_write_names_the_stage_to_run_again(tmp_path):
    class Rows(Facts):
        rows: int

    workspace = Workspace(tmp_path / "run")
    commit(workspace)
    with pytest.raises(UpstreamError, match=r"the manifest has no 'rows'") as raised:
        workspace.facts("collect", Rows)
    assert raised.value.next == "distillctl collect RECIPE --force"


# ── folders that are none of ours ────────────────────────────────────────────────────────────────

HOME = ("project/.cache.tmp/f", ".notes.aside/n", "project/sub/.data.aside/b", "project/sub/data/l", ".draft.tmp",
        ".config/x.tmp/y", ".spool.1.tmp", "report.html")  # fmt: skip


def _home(root):
    for name in HOME:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"mine: {name}")


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    _home(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with (
        pytest.raises(UnavailableError, match="not empty and is not a run directory") as raised,
        Workspace(tmp_path).lock(),
    ):
        pass
    assert "--run-dir" in raised.value.next
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_what_else_lies_in_a_run_directory_is_left_alone(tmp_path):
    workspace = Workspace(tmp_path)
    commit(workspace)
    _home(tmp_path)
    with workspace.lock():
        torn = temporary_name(workspace.folder("collect") / "views.parquet")
    torn.write_text("torn")
    with workspace.lock():
        assert all((tmp_path / name).read_text() == f"mine: {name}" for name in HOME)
        assert not torn.exists()


@pytest.mark.parametrize("before", ["", "runs/old/", "/home/who/run/"])
def test_paths_among_the_facts_are_those_of_who_asks(tmp_path, before):
    paths = {"artifact": "quantize/model.onnx", "folder": "bundle", "archive": "bundle.zip"}
    facts = {key: before + path for key, path in paths.items()} | {"score": 1.0}
    commit(Workspace(tmp_path / "made"), facts=facts)
    (tmp_path / "made").rename(tmp_path / "moved")
    workspace = Workspace(tmp_path / "moved")
    found = workspace.located(workspace.manifest("collect")).facts
    assert found == {key: str(workspace.root / path) for key, path in paths.items()} | {"score": 1.0}
