"""What is a run directory and what is not: folders of other people survive every command, byte for byte."""

import json
import os
import shutil
import signal
import stat

import pytest

from distillctl import console
from distillctl.cli import app
from distillctl.errors import Interrupted, UnavailableError
from distillctl.run_dir import run_marker
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.run_marker import MARKER, PLACES
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder, write_text
from tests.fixtures import project

STAGES = ("collect", "train", "export", "quantize", "bench", "report", "run")
COMMANDS = [
    *[[stage] for stage in STAGES],
    *[[stage, "--force"] for stage in STAGES],
    ["export", "--bundle"],
    ["export", "--bundle", "--text-in", "--force"],
    ["bench", "--quick"],
    ["bench", "--serve", "--serve-seconds", "1"],
    ["bench", "--against", "."],
    ["report", "--format", "json"],
    ["report", "--fail-under", "recovered=0.5"],
]
LOOKS = [["status"], *[[stage, "--dry-run"] for stage in STAGES]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return project.make(tmp_path_factory.mktemp("project"), rows=24, data={"eval_rows": 8})


@pytest.fixture(autouse=True)
def as_loud_as_before():
    yield
    console.configure(as_json=False, verbosity=0)


def run(command, recipe, folder):
    with pytest.raises(SystemExit) as ended:
        app([command[0], str(recipe), "--run-dir", str(folder), *command[1:], "-q"], prog_name="distillctl")
    return ended.value.code or 0


def state(folder):
    """Everything below: kind, content, time of change, names."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        one = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(one.st_mode), content, one.st_mtime_ns, one.st_nlink)
    return found


def home(folder):
    """200 files under names that resemble ours in every way."""
    names = [
        f"{place}{name}"
        for place in ("", "project/", "project/sub/", ".config/", "collect/", "train/", "report/", "bundle/", "models/")
        for name in ("notes.txt", ".notes.tmp", ".data.aside/kept", ".cache.1234.tmp/f", ".x.0123456789abcdef-ab.tmp",
                     "shards/full-train-00000-0123456789abcdef.parquet", "checkpoints/student-best/weights",
                     "served/answers.jsonl", "model/model.safetensors", "metrics.jsonl", ".views.parquet.7.tmp",
                     ".spool.1.tmp")
    ]  # fmt: skip
    names += ["bundle.zip", ".lock", "recipe.lock.yaml", "failed/quantize/log", ".report.aside/old.html", ".bashrc"]
    names += [f"photos/{number:03d}.jpg" for number in range(200 - len(names))]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    # An application's own manifests, of the same name.
    for stage in ("train", "report"):
        (folder / stage / "manifest.json").write_text(json.dumps({"name": "My app", "version": 3, "stage": stage}))
    return folder


def _marker(text):
    return lambda folder: (folder / MARKER).write_text(text)


ACCIDENTS = {
    "nothing more": lambda folder: None,
    "an empty marker": _marker(""),
    "a marker that is no JSON": _marker("mine"),
    "a marker without a checksum": _marker('{"token": "0123456789abcdef"}'),
    "a marker with another's checksum": _marker(
        '{"token": "0123456789abcdef", "checksum": "' + "0" * 64 + '"}\n'
    ),
    "a marker that is a list": _marker("[]"),
    "a marker nested deeply": _marker("[" * 4000),
    "a marker that is large": _marker("x" * 100_000),
    "a folder for a marker": lambda folder: (folder / MARKER).mkdir(),
    "a FIFO for a marker": lambda folder: os.mkfifo(folder / MARKER),
    "a dangling link for a marker": lambda folder: (folder / MARKER).symlink_to("nowhere"),
    "a folder named .distillctl": lambda folder: (folder / ".distillctl").mkdir(),
    "a FIFO for a manifest": lambda folder: (
        (folder / "export").mkdir(), os.mkfifo(folder / "export" / "manifest.json")
    ),
    "a loop of links": lambda folder: (folder / "quantize").symlink_to("quantize"),
    "a link to itself": lambda folder: (folder / "me").symlink_to("."),
    "a recipe of another tool": lambda folder: (folder / "recipe.lock.yaml").write_text("name: mine\ndata: mine\n"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_home_survives_every_command(tmp_path, recipe, accident, capsys):
    folder = home(tmp_path / "home")
    ACCIDENTS[accident](folder)
    before = state(folder)
    assert len([path for path in folder.rglob("*") if path.is_file()]) >= 200
    for command in COMMANDS:
        capsys.readouterr()
        assert run(command, recipe, folder) == 5, command
        told = capsys.readouterr().err
        assert told.count("error:") == 1, command
        assert "is not a run directory" in told, command
        assert "--run-dir" in told, command
    for command in LOOKS:
        assert run(command, recipe, folder) == 5, command
    assert state(folder) == before


@pytest.mark.parametrize("way", ["by a link", "in a stage's folder", "below a run directory", "one above", "by .."])
def test_however_it_is_named(tmp_path, recipe, way):
    """A home reached by a link, the folder of a stage, and the folder that holds run directories are none."""
    folder = home(tmp_path / "home")
    real = _run_dir(tmp_path / "runs" / "one")
    (tmp_path / "link").symlink_to(folder)
    shutil.copytree(folder, real / "notes")
    named = {
        "by a link": tmp_path / "link",
        "in a stage's folder": real / "collect",
        "below a run directory": real / "notes",
        "one above": tmp_path / "runs",
        "by ..": folder / "photos" / "..",
    }[way]
    before = state(tmp_path)
    for command in COMMANDS[:9]:
        assert run(command, recipe, named) == 5, command
    assert state(tmp_path) == before


def test_bundle_verify_and_against_leave_a_home_alone(tmp_path, recipe):
    folder = home(tmp_path / "home")
    before = state(folder)
    with pytest.raises(SystemExit) as ended:
        app(["bundle", "verify", str(folder)], prog_name="distillctl")
    assert ended.value.code == 3
    assert run(["bench", "--against", str(folder)], recipe, tmp_path / "new") in (4, 5)
    assert state(folder) == before


# ── what is one ──────────────────────────────────────────────────────────────────────────────────


def _run_dir(folder):
    """With a committed collect."""
    workspace = Workspace(folder)
    with workspace.lock():
        write_text(folder / "recipe.lock.yaml", "".join(f"{key}: x\n" for key in run_marker._SECTIONS))
        write_text(folder / "collect" / "views.parquet", "views")
        _commit(workspace)
    return folder


def _commit(workspace, text="views"):
    write_text(workspace.folder("collect") / "views.parquet", text)
    outcome = StageOutput(["views.parquet"], Facts())
    return workspace.commit("collect", recipe={}, inputs={}, outcome=outcome, seed=0, seconds=1.0)


@pytest.mark.parametrize(
    "lost",
    [
        (),
        (MARKER,),
        (MARKER, ".lock"),
        (MARKER, ".lock", "recipe.lock.yaml"),
        (MARKER, ".lock", "collect/manifest.json"),  # of a version without a marker, killed in collect
        (".lock", "recipe.lock.yaml", "collect/manifest.json"),
        (".lock", "recipe.lock.yaml", "collect/manifest.json", "collect/views.parquet", "collect"),
    ],
    ids=str,
)
def test_a_run_directory_is_known_by_what_is_left_of_it(tmp_path, lost):
    folder = _run_dir(tmp_path / "run")
    for name in lost:
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    with Workspace(folder).lock():
        assert (folder / MARKER).is_file()


@pytest.mark.parametrize("kind", ["a copy without hidden files", "killed while it was set aside"])
def test_an_older_versions_is_known(tmp_path, kind):
    folder = _run_dir(tmp_path / "run")
    (folder / MARKER).unlink()
    (folder / "recipe.lock.yaml").unlink()
    if kind == "killed while it was set aside":
        (folder / "collect").rename(folder / ".collect.aside")
        (folder / "collect").mkdir()
    workspace = Workspace(folder)
    with workspace.lock():
        assert workspace.manifest("collect") is not None
    assert not (folder / ".collect.aside").exists()


def test_a_folder_of_a_stages_name_in_what_has_no_marker_is_refused(tmp_path):
    folder = _run_dir(tmp_path / "run")
    (folder / MARKER).unlink()
    (folder / "report").mkdir()
    (folder / "report" / "thesis.tex").write_text("mine")
    with pytest.raises(UnavailableError, match="it holds report"), Workspace(folder).lock():
        pass
    assert (folder / "report" / "thesis.tex").read_text() == "mine"


def test_a_signal_while_the_marker_is_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(path):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(run_marker, "sync", interrupted)
    with pytest.raises(Interrupted):
        run_marker.token(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_names_with_its_own_token_are_removed(tmp_path):
    folder = _run_dir(tmp_path / "run")
    for place in ("collect", "collect/.folder.tmp", "."):
        (folder / place).mkdir(exist_ok=True)
        for name in (".a.tmp", ".views.parquet.12.tmp", ".collect.aside", ".x.0123456789abcdef-1.tmp"):
            (folder / place / name).write_text(f"mine: {name}")
    before = state(folder)
    with Workspace(folder).lock():
        pass
    after = state(folder)
    assert {name: one[1] for name, one in after.items()} == {name: one[1] for name, one in before.items()}


@pytest.mark.parametrize("manifest", ["whole", "one byte changed", "no JSON", "gone"])
@pytest.mark.parametrize("how", ["made again", "replaced"])
def test_files_that_someone_put_into_a_stages_folder_outlast_it(tmp_path, how, manifest):
    if (how, manifest) == ("replaced", "gone"):
        pytest.skip("a stage that replaces its folder commits it at once")
    folder = _run_dir(tmp_path / "run")
    path = folder / "collect" / "manifest.json"
    mine = {"notes.txt": "a", "plots/one.png": "b", ".hidden": "c", "new.parquet": "d", "checkpoints/best/w": "e"}
    ours = ("shards/full-train-00000-0123456789abcdef.parquet", "served/answers.jsonl",
            "checkpoints/student-0123456789abcdef-step-000003/model.safetensors")  # fmt: skip
    for name, text in [*mine.items(), *((name, "old") for name in ours)]:
        (folder / "collect" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "collect" / name).write_text(text)
    {
        "whole": lambda: None,
        "one byte changed": lambda: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1')),
        "no JSON": lambda: path.write_text("{"),
        "gone": path.unlink,
    }[manifest]()
    workspace = Workspace(folder)
    with workspace.lock():
        if how == "made again":
            with workspace.rerun("collect"):
                write_text(folder / "collect" / "new.parquet", "ours")
                _commit(workspace, "other")
        else:
            with replacing_folder(folder / "collect") as staged:
                (staged / "new.parquet").write_text("ours")
            _commit(workspace, "other")
    if manifest == "whole":
        mine["new.parquet.kept"], kept = mine.pop("new.parquet"), folder / "collect"
    else:  # what is old might be taken for new
        mine, kept = {name: text for name, text in mine.items() if name != "new.parquet"}, folder / "collect.kept"
    assert {name: (kept / name).read_text() for name in mine} == mine
    assert (folder / "collect" / "new.parquet").read_text() == "ours"
    assert not [name for name in ours if (folder / "collect" / name).exists()]
    others = {MARKER, ".lock", "collect", "recipe.lock.yaml", kept.name}
    assert {path.name for path in folder.iterdir()} == others


# ── links and what is no file ────────────────────────────────────────────────────────────────────

FILES = {MARKER, ".lock", "recipe.lock.yaml", "bundle.zip"}
INSIDE = ["collect/shards", "collect/served", "collect/views.parquet", "collect/served/answers.jsonl",
          "collect/manifest.json", "collect/shards/full-train-00000-0123456789abcdef.parquet", "train/checkpoints",
          "train/model", "train/metrics.jsonl", "quantize/model.onnx", "bundle/deeper/still/x"]  # fmt: skip


@pytest.mark.parametrize("to", ["outside", "nowhere", "itself"])
@pytest.mark.parametrize("name", [*PLACES, *INSIDE])
def test_nothing_is_written_through_a_link(tmp_path, recipe, name, to, capsys):
    outside = home(tmp_path / "outside")
    folder = _run_dir(tmp_path / "run")
    place = folder / name
    if place.exists():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    target = outside / ("collect" if name in PLACES and name not in FILES else "notes.txt")
    place.symlink_to({"outside": target, "nowhere": outside / "new", "itself": place}[to])
    before = state(outside)
    for command in (["collect"], ["train", "--force"], ["run"]):
        capsys.readouterr()
        assert run(command, recipe, folder) == 5, command
        told = capsys.readouterr().err
        assert told.count("error:") == 1
        assert "it is a link to" in told or "is not a run directory" in told
    assert state(outside) == before
    assert place.is_symlink()


@pytest.mark.parametrize("name", [*PLACES, *INSIDE])
def test_a_fifo_is_not_waited_for(tmp_path, recipe, name, capsys):
    folder = _run_dir(tmp_path / "run")
    place = folder / name
    if place.exists():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(place)
    for command in (["collect"], ["report"]):
        assert run(command, recipe, folder) == 5, command
        assert "FIFO" in capsys.readouterr().err
    for command in (["status"], ["run", "--dry-run"]):
        assert run(command, recipe, folder) == 5, command


@pytest.mark.parametrize(
    "name", [".lock", "recipe.lock.yaml", "collect/views.parquet", "collect/manifest.json", MARKER]
)
def test_another_name_of_a_file_keeps_its_bytes(tmp_path, name):
    """Hard links, as backups by `cp -al` make them."""
    folder = _run_dir(tmp_path / "run")
    (folder / ".lock").write_text("process 1 on another machine")
    os.link(folder / name, tmp_path / "other")
    before = (tmp_path / "other").read_bytes()
    workspace = Workspace(folder)
    with workspace.lock():
        write_text(folder / "recipe.lock.yaml", "new")
        with workspace.rerun("collect"):
            _commit(workspace, "other")
        assert (tmp_path / "other").read_bytes() == before
    assert (tmp_path / "other").read_bytes() == before
