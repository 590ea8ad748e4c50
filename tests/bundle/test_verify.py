"""bundle verify: whole or not, and nothing of a bundle is believed before it has been looked at."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from distillctl.bundle import archive, text_in
from distillctl.bundle.manifest import NAME, BundleManifest, GoldenExample
from distillctl.bundle.verify import verify
from distillctl.errors import DataError, GateFailed
from tests.fixtures import bundled, project

pytestmark = pytest.mark.slow

FILES = [
    "README.md",
    "bundle.json",
    "config.json",
    "labels.json",
    "model.onnx",
    "model.ort",
    "model_text_in.onnx",
    "required_operators_and_types.config",
    "snippets/Classifier.kt",
    "snippets/Classifier.swift",
    "snippets/classify.mjs",
    "snippets/classify.py",
    "snippets/classify_text_in.py",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of a bundle, to be spoilt."""
    return shutil.copytree(bundled.finished().folder("bundle"), tmp_path / "bundle")


@pytest.fixture
def packed(tmp_path) -> Path:
    return shutil.copy(bundled.finished().root / "bundle.zip", tmp_path / "bundle.zip")


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_whole_one_answers_as_recorded(folder, packed):
    for path in (folder, packed):
        found = verify(path)
        assert found["graphs"] == dict.fromkeys(
            ["model.onnx", "model.ort", "model_text_in.onnx"], "answers as recorded"
        )
        assert found["files"] == len(FILES)
    assert sorted(archive.files(folder)) == sorted([*FILES, "manifest.json"])  # the last is the run directory's


# ── a flipped byte ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_a_flipped_byte_in_any_file_is_named(folder, name, share):
    size = (folder / name).stat().st_size
    flip(folder / name, min(size - 1, int(size * share)))
    with pytest.raises(GateFailed, match=name) as told:
        verify(folder)
    assert told.value.exit_code == 6


@given(st.data())
@settings(max_examples=80)
def test_no_byte_of_bundle_json_changes_unseen(data):
    manifest = bundled.finished().folder("bundle") / NAME
    at = data.draw(st.integers(0, manifest.stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    folder = manifest.parent.parent / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(manifest.parent, folder)
    flip(folder / NAME, at, bit)
    with pytest.raises(GateFailed, match=NAME):
        verify(folder)


@given(st.data())
@settings(max_examples=80)
def test_no_byte_of_the_archive_changes_unseen(data):
    whole = bundled.finished().root / "bundle.zip"
    path = whole.with_name("flipped.zip")
    shutil.copy(whole, path)
    size = whole.stat().st_size
    # The table of contents at the end is small and matters: half of the tries are there.
    at = data.draw(st.integers(0, size - 1) | st.integers(size - 2000, size - 1))
    flip(path, at, data.draw(st.integers(0, 7)))
    with pytest.raises((GateFailed, DataError)):  # without the manifest's name, it is not a bundle at all
        verify(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_shortened_archive(packed, share):
    with packed.open("r+b") as file:
        file.truncate(int(packed.stat().st_size * share))
    with pytest.raises(GateFailed):
        verify(packed)


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_missing_and_what_is_too_much(folder):
    (folder / "labels.json").unlink()
    (folder / "extra.txt").write_text("a")
    with pytest.raises(GateFailed) as told:
        verify(folder)
    assert "labels.json is missing" in str(told.value)
    assert "extra.txt is not listed" in str(told.value)


@pytest.mark.parametrize("name", ["model.onnx", "snippets"])
def test_a_link_is_refused_even_to_the_right_bytes(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GateFailed, match=f"{name} is a link"):
        verify(folder)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a//b", "a\\b", "c:x", "./a"])
def test_a_listed_path_that_leaves_the_bundle(folder, name):
    manifest = BundleManifest.model_validate_json((folder / NAME).read_bytes())
    bundled.reseal(folder, files=manifest.files | {name: manifest.files["model.onnx"]})
    with pytest.raises(GateFailed, match="path"):
        verify(folder)


def spoilt(packed: Path, change) -> None:
    """The archive again, its entries as ``change`` makes them of [(ZipInfo, bytes)]."""
    with zipfile.ZipFile(packed) as source:
        entries = [(entry, source.read(entry)) for entry in source.infolist()]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for entry, data in change(entries):
            target.writestr(entry, data)
    packed.write_bytes(made.getvalue())


@pytest.mark.parametrize("name", ["../../outside.txt", "/tmp/outside.txt", "..\\outside.txt"])
def test_an_entry_that_leaves_the_archive_writes_nothing(packed, tmp_path, name):
    spoilt(packed, lambda entries: [*entries, (zipfile.ZipInfo(name), b"out")])
    with pytest.raises(GateFailed, match=r"path"):
        verify(packed)
    assert not list(tmp_path.rglob("outside.txt"))
    assert not Path("/tmp/outside.txt").exists()


def test_a_link_in_the_archive(packed):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    spoilt(packed, lambda entries: [*entries, (link, b"/etc/passwd")])
    with pytest.raises(GateFailed, match="link is a link"):
        verify(packed)


@pytest.mark.parametrize(
    ("name", "told"), [("README.md/inside", "lies in a file"), ("a" * 300, "too long"), ("a/", "leaves the bundle")]
)
def test_names_that_no_folder_can_hold(packed, name, told):
    spoilt(packed, lambda entries: [*entries, (zipfile.ZipInfo(name), b"")])
    with pytest.raises(GateFailed, match=told):
        verify(packed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_the_archive(packed):
    spoilt(packed, lambda entries: [*entries, entries[0]])
    with pytest.raises(GateFailed, match="listed twice"):
        verify(packed)


def test_a_bomb_is_refused_by_its_header(packed):
    bomb = zipfile.ZipInfo("zeros")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    spoilt(packed, lambda entries: [*entries, (bomb, bytes(10_000_000))])
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(GateFailed, match="zeros is compressed"):
        verify(packed)


def test_more_bytes_listed_than_there_are(packed):
    """Both sizes of an entry in the table of contents, made a gigabyte."""
    data = bytearray(packed.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = (1 << 30).to_bytes(4, "little") * 2
    packed.write_bytes(data)
    with pytest.raises(GateFailed, match="bytes, and the archive has only"):
        verify(packed)


def test_the_same_files_packed_again_are_told_apart(packed):
    spoilt(packed, reversed)
    with pytest.raises(GateFailed, match="packed again") as told:
        verify(packed)
    assert "unpack" in str(told.value.next)


# ── graphs ───────────────────────────────────────────────────────────────────────────────────────


def outside_weights(folder: Path, location: str) -> None:
    model = onnx.load(folder / "model.onnx")
    [weights] = [one for one in model.graph.initializer if one.name == "embedding"]
    (folder.parent / "weights.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    bundled.reseal(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_outside_the_bundle(folder, absolute):
    place = str(folder.parent / "weights.bin") if absolute else "../weights.bin"
    outside_weights(folder, place)
    with pytest.raises(GateFailed, match=r"reads .*weights.bin.*none of the folder's files"):
        verify(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.ort", "model_text_in.onnx"])
def test_a_graph_that_does_not_open(folder, name):
    (folder / name).write_bytes(b"no graph")
    bundled.reseal(folder)
    with pytest.raises(GateFailed, match=name):
        verify(folder)


def test_a_graph_that_answers_otherwise(folder):
    graph = onnx.load(folder / "model.onnx")
    head = next(weights for weights in graph.graph.initializer if weights.name == "head")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), "head"))  # its first choice becomes its last
    onnx.save(graph, folder / "model.onnx")
    bundled.reseal(folder)
    with pytest.raises(GateFailed, match=r"model\.onnx answers"):
        verify(folder)


def test_another_recorded_label(folder):
    example = json.loads((folder / NAME).read_text())["example"]
    other = next(label for label in bundled.LABELS if label != example["label"])
    bundled.reseal(folder, example=GoldenExample(**example | {"label": other}))
    with pytest.raises(GateFailed) as told:
        verify(folder)
    assert str(told.value).count(other) == 3  # by each of the graphs


def test_without_the_extensions_the_text_in_graph_is_said_to_be_unopened(folder, monkeypatch):
    monkeypatch.setattr(text_in, "is_installed", lambda: False)
    found = verify(folder)["graphs"]
    assert found["model.onnx"] == found["model.ort"] == "answers as recorded"
    assert found["model_text_in.onnx"].startswith("not opened")


# ── no bundle at all ─────────────────────────────────────────────────────────────────────────────


def test_what_is_no_bundle(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a.txt", "a")
    for name in ("nothing", "empty", "text.txt", "other.zip"):
        with pytest.raises(DataError) as told:
            verify(tmp_path / name)
        assert told.value.exit_code == 3


# ── the command ──────────────────────────────────────────────────────────────────────────────────

LIGHT = """
import sys
from distillctl.cli import main
sys.argv = ["distillctl", "bundle", "verify", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.exit("imported torch" if "torch" in sys.modules else 0)
"""


def test_the_command_imports_no_torch_and_prints_one_object(folder):
    command = [sys.executable, "-c", LIGHT, str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=project.environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["graphs"]["model.ort"] == "answers as recorded"


def test_its_exit_codes(folder, packed):
    assert project.run("bundle", "verify", packed).returncode == 0
    flip(folder / "tokenizer.json", 100)
    done = project.run("bundle", "verify", folder, "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["exit_code"] == 6
    assert "tokenizer.json is damaged" in done.stderr
    assert project.run("bundle", "verify", folder / "nothing").returncode == 3
    assert project.run("bundle", "check").returncode == 2


def test_what_cannot_be_read_is_told(folder):
    (folder / "labels.json").chmod(0)
    done = subprocess.run(
        project.command("bundle", "verify", folder),
        capture_output=True,
        text=True,
        env=project.environment(),
        preexec_fn=project.without_root_rights,
    )
    assert done.returncode == 5, done.stderr
    assert "labels.json: cannot be read" in done.stderr


def test_a_full_disk_is_told(packed):
    done = project.run("bundle", "verify", packed, prepare=project.small_files(1000))
    assert done.returncode == 5, done.stderr
    assert "cannot be written" in done.stderr
    assert os.fspath(packed.parent) not in done.stderr  # it is the scratch folder's disk
