"""Whatever is wrong: one clear error, the right exit code, no traceback, and nothing lost."""

import json
import shutil

import pytest

from distillctl.run_dir.workspace import MANIFEST
from tests.fixtures import project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A project that has collected and trained."""
    folder = tmp_path_factory.mktemp("project")
    recipe = project.make(folder)
    for stage in ("collect", "train"):
        done = project.run(stage, recipe, "--run-dir", folder / "run")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(collected, tmp_path):
    shutil.copytree(collected, tmp_path / "p")
    return tmp_path / "p"


def fails(done, code, *told):
    """One error on stderr with this exit code; stdout stays empty."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error:") == 1
    for words in told:
        assert words in done.stderr, done.stderr
    assert done.stdout == ""


LIGHT = {
    "missing file": ({"data": {"source": "gone.jsonl"}}, None, ["data.source: there is no file", "gone.jsonl"]),
    "bad YAML": ({}, "name: [", ["recipe.yaml:1: not valid YAML"]),
    "unknown key": ({"train": {"epoch": 2}}, None, ["train.epoch: unknown key, did you mean epochs?"]),
    "wrong type": ({"train": {"epochs": "two"}}, None, ["train.epochs", "a whole number is wanted"]),
    "empty data": ({"data": {"source": "empty.jsonl"}}, None, ["empty.jsonl: has no rows"]),
    "row without input": ({"data": {"source": "bad.jsonl"}}, None, ['bad.jsonl:2: no "input"']),
    "blank row": ({"data": {"source": "blank.csv"}}, None, ['blank.csv:3: "input" is empty', "data.blank: drop"]),
    "stray quotes": (
        {"data": {"source": "stray.tsv", "quoting": "on"}}, None, ["stray.tsv:2: a quote that opens here"]),
    "semicolons": ({"data": {"source": "semicolons.csv"}}, None, ["semicolons.csv:1: the header is one cell"]),
    "one train row": ({"data": {"source": "two.csv", "eval_rows": 1}}, None, ["data: nothing is left to train on"]),
    "unknown column": (
        {"contexts": {"full": {"template": "{{ row.title }}"}}}, None, ["'title' is undefined", "the columns: input"]),
    "unknown reference": ({"task": {"labels": ["who", "where"]}}, None, ["rows.jsonl:1", "is not a label"]),
    "a template without the input": (
        {"contexts": {"full": {"template": "Sort it."}}}, None, ["contexts.full", "same view", "write {{ input }}"]),
    "a label_map that leads to no label": (
        {"data": {"label_map": {"many": "numbers"}}}, None, ["data.label_map: 'numbers' is no label"]),
    "bad template": ({"contexts": {"full": {"template": "{{ inpt }}"}}}, None, ["contexts.full", "'inpt' is"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LIGHT)
def test_what_recipe_and_data_show_is_told_without_torch(tmp_path, case):
    sections, text, told = LIGHT[case]
    recipe = project.make(tmp_path, **sections)
    if text is not None:
        recipe.write_text(text)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"input": "who"}\n{"text": "who"}\n')
    (tmp_path / "blank.csv").write_text("input,reference\nwho,person\n,person\n")
    (tmp_path / "stray.tsv").write_text('input\treference\n"who\tperson\nhow"\tnumber\nwhat\tnumber\n')
    (tmp_path / "semicolons.csv").write_text("input;reference\nwho;person\n")
    (tmp_path / "two.csv").write_text("input,reference\nwho,person\nhow,number\n")
    done = project.run("collect", recipe, "--run-dir", tmp_path / "run", PYTHONPATH=without_torch(tmp_path))
    fails(done, 3, *told)
    assert "torch was imported" not in done.stderr


def without_torch(folder):
    """A path on which torch ends the program."""
    script = folder / "no_torch" / "torch.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit('torch was imported')")
    return str(script.parent)


def test_train_says_without_torch_that_nothing_is_left_to_train_on(copy, tmp_path):
    arguments = ("--run-dir", copy / "run", "--set", "train.validation=0.999")
    done = project.run("train", copy / "recipe.yaml", *arguments, PYTHONPATH=without_torch(tmp_path))
    fails(done, 3, "nothing is left to train on", "train.validation: 0.999")
    assert "torch was imported" not in done.stderr


HEAVY = {
    "label out of the tokenizer's reach": (
        {"task": {"labels": {**project.LABELS, "person": "zebra"}}}, 3, ["task.labels", "cannot write 'zebra'"]),
    "context longer than the model": (
        {"contexts": {"full": {"template": "who " * 200 + "{{ input }}"}}}, 3,
        ["contexts.full: row", "tokens, the teacher takes 127", "contexts.truncate"]),
    "unknown model": ({"teacher": {"model": "./nowhere"}}, 5, ["teacher.model: there is no model at"]),
    "unknown hub model": ({"teacher": {"model": "nobody/nothing"}}, 5, ["teacher.model", "cannot be loaded"]),
    "model package not installed": (
        {"teacher": {"model": "package:no_such_carrier/x.gguf"}}, 5, ["no_such_carrier is not installed"]),
    "device that is not there": ({"teacher": {"device": "cuda:7"}}, 5, ["teacher.device"]),
}  # fmt: skip


@pytest.mark.parametrize("case", HEAVY)
def test_what_only_the_models_show(tmp_path, case):
    sections, code, told = HEAVY[case]
    recipe = project.make(tmp_path, **sections)
    fails(project.run("collect", recipe, "--run-dir", tmp_path / "run"), code, *told)
    assert not (tmp_path / "run" / "collect" / MANIFEST).exists()


def test_a_run_directory_that_cannot_be_written(copy):
    before = project.contents(copy / "run")
    for item in [copy / "run", *(copy / "run").rglob("*")]:
        item.chmod(0o555 if item.is_dir() else 0o444)
    words = ("collect", copy / "recipe.yaml", "--run-dir", copy / "run", "--force")
    done = project.run(*words, prepare=project.without_root_rights, forked=False)
    fails(done, 5, "cannot be written: Permission denied", "--run-dir")
    assert project.contents(copy / "run") == before


def test_a_file_in_the_place_of_the_run_directory(copy):
    done = project.run("collect", copy / "recipe.yaml", "--run-dir", copy / "rows.jsonl")
    fails(done, 5, "rows.jsonl")


@pytest.mark.parametrize(("stage", "limit"), [("collect", 2000), ("train", 2000), ("train", 140_000), ("export", 4000)])
def test_a_full_disk_loses_nothing(copy, stage, limit):
    recipe, run = copy / "recipe.yaml", copy / "run"
    before = project.contents(run)
    done = project.run(stage, recipe, "--run-dir", run, "--force", prepare=project.small_files(limit))
    fails(done, 5, "cannot be written: ", "what was committed is kept")
    assert project.contents(run) == before
    again = project.run(stage, recipe, "--run-dir", run)
    assert again.returncode == 0, again.stderr


def test_a_corrupted_shard_is_named_and_only_it_is_collected_again(copy):
    recipe, run = copy / "recipe.yaml", copy / "run"
    shard = sorted((run / "collect" / "shards").glob("full-train-*"))[3]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    fails(project.run("train", recipe, "--run-dir", run), 4, shard.name, "is damaged", "distillctl collect")
    again = project.run("collect", recipe, "--run-dir", run, "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["scored_rows"], found["reused_rows"]) == (8, 232)
    assert shard.read_bytes() == whole
    assert project.run("train", recipe, "--run-dir", run).stdout.startswith("train: fresh")


def test_a_damaged_manifest(copy):
    (copy / "run" / "collect" / MANIFEST).write_text("{")
    recipe, run = copy / "recipe.yaml", copy / "run"
    fails(project.run("train", recipe, "--run-dir", run), 4, "damaged", "distillctl collect")
    mended = project.run("collect", recipe, "--run-dir", run, "--json")
    assert json.loads(mended.stdout)["reused_rows"] == 240
    assert project.run("train", recipe, "--run-dir", run).stdout.startswith("train: fresh")


def test_force_runs_every_stage_again(copy):
    done = project.run("collect", copy / "recipe.yaml", "--run-dir", copy / "run", "--force", "--json")
    assert json.loads(done.stdout)["reused_rows"] == 0


def test_an_upstream_stage_that_is_missing_or_stale(copy):
    recipe, run = copy / "recipe.yaml", copy / "run"
    fails(
        project.run("quantize", recipe, "--run-dir", run),
        4,
        "quantize needs export, which is missing",
        "distillctl export",
    )
    done = project.run("export", recipe, "--run-dir", run, "--set", "train.epochs=9")
    fails(done, 4, "export needs train, which is stale: train.epochs changed")


def test_the_next_command_is_the_one_that_mends_this_run(copy):
    run = copy / "run"
    done = project.run("export", copy / "recipe.yaml", "--run-dir", run, "--set", "train.epochs=9")
    assert f"--run-dir {run} --set train.epochs=9" in done.stderr


def test_usage_errors_are_2(tmp_path):
    recipe = project.make(tmp_path)
    for args in (["collect"], ["collect", recipe, "--nope"], ["nope"], ["init"]):
        done = project.run(*args)
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr


def test_run_tells_of_a_missing_student_before_collecting(tmp_path):
    recipe = project.make(tmp_path, student={"model": "./nowhere"})
    fails(project.run("run", recipe, "--run-dir", tmp_path / "run"), 5, "student.model: there is no model at")
    assert not (tmp_path / "run" / "collect").exists()


def test_a_gate_that_fails_commits_nothing(copy):
    recipe, run = copy / "recipe.yaml", copy / "run"
    assert project.run("export", recipe, "--run-dir", run).returncode == 0
    done = project.run("quantize", recipe, "--run-dir", run, "--set", "quantize.gate.max_kl=1e-12")
    fails(done, 6, "dynamic_int8", "kl")
    assert not (run / "quantize").exists()


def test_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(copy):
    recipe, run = copy / "recipe.yaml", copy / "run"
    done = project.run("train", recipe, "--run-dir", run, "--set", "train.learning_rate=1e30",
                       "--set", "train.schedule=constant", "--set", "train.checkpoint_every=1")  # fmt: skip
    fails(done, 6, "diverged at step", "last good checkpoint is", "learning_rate")
    assert list((run / "train" / "checkpoints").glob("student-*-step-*"))


def test_json_errors_are_one_object(tmp_path):
    done = project.run("collect", tmp_path / "none.yaml", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
