"""All stages on a tiny project: what is fresh is skipped, and what went stale is named with its reason."""

import json
import os
import shutil

import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace
from tests.fixtures import manifests, project
from tests.run_dir import flips

STAGES = ["collect", "train", "export", "quantize", "bench", "report"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return project.finished(tmp_path_factory.mktemp("project"))


def states(recipe, run, *overrides):
    found = pipeline.status(recipes.load(recipe, overrides), Workspace(run))
    return {state.stage: (state.state, state.why) for state in found}


def test_run_commits_every_stage_and_prints_one_object(ran):
    recipe, run = ran
    found = json.loads((recipe.parent / "printed.json").read_text())
    assert list(found["stages"]) == STAGES
    assert set(found["arms"]) == {
        "ceiling",
        "floor",
        "cue_only",
        "student",
        "control",
        "deployed",
        "majority",
        "bag_of_words",
    }
    assert set(found["models"]) == {"teacher", "teacher_cached", "fp32", "deployed"}
    assert set(found["recovered"]) >= {"student", "deployed"}
    for name in ("recipe.lock.yaml", "collect/views.parquet", "train/model/model.safetensors", "train/metrics.jsonl",
                 "export/model.onnx", "quantize/model.onnx", "quantize/candidates.json", "bench/results.json",
                 "report/report.html"):  # fmt: skip
        assert (run / name).is_file(), name
    assert all(state == ("fresh", ()) for state in states(recipe, run).values())


def test_a_second_run_does_nothing(ran):
    recipe, run = ran
    before = project.contents(run)
    done = project.run("run", recipe, "--run-dir", run, "--json")
    assert all(stage["fresh"] for stage in json.loads(done.stdout)["stages"].values())
    assert project.contents(run) == before


def test_report_formats(ran):
    recipe, run = ran
    contract = json.loads(project.run("report", recipe, "--run-dir", run, "--format", "json").stdout)
    assert {"arms", "recovered", "models", "context_tokens", "artifact"} <= set(contract)
    assert set(contract["arms"]["ceiling"]) >= {"score", "low", "high", "n", "metric"}
    assert "| ceiling" in project.run("report", recipe, "--run-dir", run, "--format", "md").stdout
    assert "report.html" in project.run("report", recipe, "--run-dir", run).stdout


@pytest.mark.parametrize(
    ("override", "first", "why"),
    [
        ("contexts.full.template='{{ input }} a'", "collect", "contexts.full.template changed"),
        ("task.prior=none", "collect", "task.prior changed"),
        ("train.learning_rate=1e-4", "train", "train.learning_rate changed from 0.001 to 0.0001"),
        ("train.seed=7", "train", "train.seed changed"),
        ("export.opset=17", "export", "export.opset changed"),
        ("quantize.gate.max_kl=1", "quantize", "quantize.gate.max_kl changed from 9 to 1"),
        ("bench.queries=7", "bench", "bench.queries changed from 6 to 7"),
        ("report.title=Hello", "report", "report.title changed"),
    ],
)
def test_a_changed_knob_makes_its_stage_and_those_below_stale(ran, override, first, why):
    recipe, run = ran
    found = states(recipe, run, override)
    at = STAGES.index(first)
    assert all(found[name][0] == "fresh" for name in STAGES[:at])
    assert found[first] == ("stale", (why,))
    assert all(found[name][0] == "stale" for name in STAGES[at:])


def test_a_changed_data_file_and_a_changed_model_file(ran, tmp_path):
    recipe, run = ran
    rows = recipe.parent / "rows.jsonl"
    text = rows.read_text()
    try:
        rows.write_text(text + json.dumps({"input": "a new row", "reference": "person"}) + "\n")
        assert states(recipe, run)["collect"] == ("stale", ("the file of data.source changed",))
    finally:
        rows.write_text(text)
    config = recipe.parent / "student" / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + "\n")
        found = states(recipe, run)
        assert found["collect"][0] == "fresh"
        assert found["train"] == ("stale", ("the file of student.model changed",))
    finally:
        config.write_text(text)


def test_touching_files_changes_nothing(ran):
    recipe, run = ran
    for path in [recipe.parent / "rows.jsonl", *run.rglob("*.parquet")]:
        path.touch()
    assert all(state == "fresh" for state, _ in states(recipe, run).values())


def test_the_lock_file_is_the_recipe_with_every_default(ran):
    recipe, run = ran
    assert yaml.safe_load((run / "recipe.lock.yaml").read_text()) == recipes.load(recipe).model_dump(mode="json")


# ── a run directory that is not as it was left ───────────────────────────────────────────────────


@pytest.fixture
def copy(ran, tmp_path):
    """The recipe, and a run directory of its own."""
    return ran[0], shutil.copytree(ran[1], tmp_path / "run")


def test_a_changed_byte_is_noticed_wherever_it_is(copy):
    recipe, run = copy
    found = flips.count(recipes.load(recipe), run, 100)
    assert found["unseen"] == []
    assert found["noticed"] + found["not_load_bearing"] == 100
    assert found["noticed"] > 90


def _swapped(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


FAULTS = {
    "an output is removed": (lambda run: (run / "export/model.onnx").unlink(), "export", "export/model.onnx is gone"),
    "a shard is removed": (
        lambda run: next((run / "collect/shards").iterdir()).unlink(), "collect", "is gone",
    ),
    "a file is truncated": (
        lambda run: os.truncate(run / "train/model/model.safetensors", 99), "train", "train/model/model.safetensors is",
    ),
    "a manifest is truncated": (
        lambda run: os.truncate(run / "bench/manifest.json", 99), "bench", "bench/manifest.json: the manifest is",
    ),
    "a manifest is empty": (
        lambda run: os.truncate(run / "bench/manifest.json", 0), "bench", "bench/manifest.json: the manifest is",
    ),
    "two stages' files are swapped": (
        lambda run: _swapped(run / "train/eval.parquet", run / "quantize/eval.parquet"), "train", "train/eval.parquet",
    ),
    "two stages' manifests are swapped": (
        lambda run: _swapped(run / "export/manifest.json", run / "quantize/manifest.json"), "export",
        "it belongs to quantize",
    ),
    "two stages are swapped": (
        lambda run: _swapped(run / "export", run / "quantize"), "export", "it belongs to quantize",
    ),
    "a manifest is an older version's": (
        lambda run: _older(run / "bench/manifest.json"), "bench", "made by an older version",
    ),
    "a file is added": (
        lambda run: (run / "export/notes.txt").write_text("mine"), "export", "export/notes.txt is not what export",
    ),
}  # fmt: skip


def _older(path):
    document = json.loads(path.read_text())
    del document["checksum"]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_as_it_was_left_is_told(copy, fault):
    recipe, run = copy
    change, stage, told = FAULTS[fault]
    change(run)
    found = {state.stage: state for state in pipeline.status(recipes.load(recipe), Workspace(run))}[stage]
    assert told in "; ".join(found.why)
    harmless = ("a file is added", "a manifest is an older version's")
    assert found.state == ("fresh" if fault in harmless else "damaged")
    assert found.next == ("" if fault in harmless else f"distillctl {stage} {recipe} --run-dir {run}")


def test_a_manifest_of_another_run_is_told(copy, tmp_path):
    recipe, run = copy
    again = project.run("train", recipe, "--run-dir", run, "--set", "train.seed=7")
    assert again.returncode == 0, again.stderr
    other = (run / "train/manifest.json").read_bytes()
    shutil.rmtree(run)
    shutil.copytree(recipe.parent / "run", run)
    (run / "train/manifest.json").write_bytes(other)
    assert states(recipe, run)["train"][0] == "damaged"


def test_the_command_that_status_names_mends_it(copy):
    recipe, run = copy
    for name in ("collect/manifest.json", "collect/views.parquet", "report/report.html", "export/config.json"):
        file = run / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    told = json.loads(project.run("status", recipe, "--run-dir", run, "--json").stdout)["stages"]
    assert {one["stage"] for one in told if one["next"]} == {"collect", "export", "report"}
    for one in told:
        if one["next"]:
            done = project.run(*one["next"].split()[1:])
            assert done.returncode == 0, done.stderr
    assert all(state == ("fresh", ()) for state in states(recipe, run).values())


def test_a_knob_that_an_older_version_did_not_have_makes_nothing_stale_until_it_is_set(copy):
    recipe, run = copy
    for stage, section, knob, override in (
        ("report", "report", "languages", "report.languages={input: en, answer: fr}"),
        ("collect", "data", "unreferenced", "data.unreferenced=drop"),
    ):
        manifest = json.loads((run / f"{stage}/manifest.json").read_text())
        del manifest["recipe"][section][knob]
        manifests.write(run / f"{stage}/manifest.json", manifest)
        assert states(recipe, run)[stage] == ("fresh", ())
        assert states(recipe, run, override)[stage][0] == "stale"


def test_checkpoints_of_a_finished_train_are_gone(ran):
    run = ran[1]
    assert not (run / "train" / "checkpoints").exists()
    assert [name.partition("-")[0] for name in Workspace(run).manifest("train").scratch] == [
        "checkpoints/control", "checkpoints/student",
    ]  # fmt: skip


# ── what a command asked for ─────────────────────────────────────────────────────────────────────


def test_a_bundle_with_more_than_the_recipe_asks_for_is_fresh(copy):
    recipe, run = copy
    workspace, stage = Workspace(run), pipeline.STAGES["bundle"]
    asking, plain = recipes.load(recipe, ["bundle.text_in=true"]), recipes.load(recipe)
    workspace.folder("bundle").mkdir()
    (workspace.folder("bundle") / "bundle.json").write_text("{}")

    def made(by):
        read = pipeline.inputs(by, workspace, stage)
        outcome = StageOutput(["bundle.json"], Facts())
        workspace.commit("bundle", recipe=pipeline.part(by, stage), inputs=read, outcome=outcome, seed=0, seconds=1.0)

    def bundle(of):
        return {state.stage: state for state in pipeline.status(of, workspace)}["bundle"]

    made(asking)
    assert (bundle(asking).state, bundle(plain).state) == ("fresh", "fresh")
    (workspace.folder("bundle") / "bundle.json").write_text("?")
    assert bundle(plain).next == f"distillctl export {recipe} --run-dir {run} --bundle --text-in"
    made(plain)
    assert bundle(plain).state == "fresh"
    assert bundle(asking).why == ("bundle.text_in changed",)


def test_a_moved_run_directory_says_where_its_graph_is_now(copy, tmp_path):
    recipe, run = copy
    moved = run.rename(tmp_path / "moved")
    for words in (["report", "--format", "json"], ["run", "--json"]):
        found = json.loads(project.run(words[0], recipe, *words[1:], "--run-dir", moved).stdout)
        assert found["artifact"] == str(moved / "quantize" / "model.onnx")
    shown = (
        project.run("report", recipe, "--run-dir", moved).stdout
        + project.run("report", recipe, "--format", "md", "--run-dir", moved).stdout
    )
    assert str(moved / "quantize" / "model.onnx") in shown
    assert str(run) not in shown
    of_text = [path for path in moved.rglob("*") if path.suffix in (".json", ".html", ".md", ".yaml", ".jsonl")]
    assert not [path for path in of_text if str(run.parent) in path.read_text(encoding="utf-8")]
