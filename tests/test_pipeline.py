"""All stages on a tiny project: what is fresh is skipped, and what went stale is named with its reason."""

import json

import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.workspace import Workspace
from tests import project

STAGES = ["collect", "train", "export", "quantize", "bench", "report"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    recipe = project.make(folder, train={"epochs": 2, "control": True})
    done = project.run("run", recipe, "--run-dir", folder / "run", "--json")
    assert done.returncode == 0, done.stderr
    return recipe, folder / "run", done


def states(recipe, run, *overrides):
    found = pipeline.status(recipes.load(recipe, overrides), Workspace(run))
    return {state.stage: (state.state, state.why) for state in found}


def test_run_commits_every_stage_and_prints_one_object(ran):
    recipe, run, done = ran
    found = json.loads(done.stdout)
    assert list(found["stages"]) == STAGES
    assert set(found["arms"]) == {"ceiling", "floor", "cue_only", "student", "control", "deployed"}
    assert set(found["models"]) == {"teacher", "teacher_cached", "fp32", "deployed"}
    assert set(found["recovered"]) >= {"student", "deployed"}
    for name in ("recipe.lock.yaml", "collect/views.parquet", "train/model/model.safetensors", "train/metrics.jsonl",
                 "export/model.onnx", "quantize/model.onnx", "quantize/candidates.json", "bench/results.json",
                 "report/report.html"):  # fmt: skip
        assert (run / name).is_file(), name
    assert all(state == ("fresh", ()) for state in states(recipe, run).values())


def test_a_second_run_does_nothing(ran):
    recipe, run, _ = ran
    before = project.contents(run)
    done = project.run("run", recipe, "--run-dir", run, "--json")
    assert all(stage["fresh"] for stage in json.loads(done.stdout)["stages"].values())
    assert project.contents(run) == before


def test_report_formats(ran):
    recipe, run, _ = ran
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
        ("train.learning_rate=1e-4", "train", "train.learning_rate changed"),
        ("train.seed=7", "train", "train.seed changed"),
        ("export.opset=17", "export", "export.opset changed"),
        ("quantize.gate.max_kl=1", "quantize", "quantize.gate.max_kl changed"),
        ("bench.queries=7", "bench", "bench.queries changed"),
        ("report.title=Hello", "report", "report.title changed"),
    ],
)
def test_a_changed_knob_makes_its_stage_and_those_below_stale(ran, override, first, why):
    recipe, run, _ = ran
    found = states(recipe, run, override)
    at = STAGES.index(first)
    assert all(found[name][0] == "fresh" for name in STAGES[:at])
    assert found[first] == ("stale", (why,))
    assert all(found[name][0] == "stale" for name in STAGES[at:])


def test_a_changed_data_file_and_a_changed_model_file(ran, tmp_path):
    recipe, run, _ = ran
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
    recipe, run, _ = ran
    for path in [recipe.parent / "rows.jsonl", *run.rglob("*.parquet")]:
        path.touch()
    assert all(state == "fresh" for state, _ in states(recipe, run).values())


def test_the_lock_file_is_the_recipe_with_every_default(ran):
    recipe, run, _ = ran
    assert yaml.safe_load((run / "recipe.lock.yaml").read_text()) == recipes.load(recipe).model_dump(mode="json")
