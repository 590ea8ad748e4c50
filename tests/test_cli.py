"""The command line: light, quiet where it should be, one JSON object, and described by its own help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distillctl import recipe as recipes
from tests import ROOT
from tests.fixtures import project

pytestmark = pytest.mark.slow

LIGHT = """
import sys
from distillctl.cli import main
sys.argv = ["distillctl", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "transformers", "onnxruntime", "datasets", "scipy", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return project.make(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["train", "--help"],
        ["--version"],
        ["init", "--schema"],
        ["report", "--schema"],
        ["doctor"],
        ["status", "RECIPE"],
        ["run", "RECIPE", "--dry-run"],
        ["collect", "RECIPE", "--set", "train.epoch=1"],
        ["train", "RECIPE"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(recipe, tmp_path, args):
    args = [str(recipe) if arg == "RECIPE" else arg for arg in args]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *args], capture_output=True, text=True, cwd=tmp_path, env=project.environment()
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["status"], ["run", "--dry-run"], ["collect", "--dry-run"]], ids=" ".join)
def test_json_is_exactly_one_object(recipe, tmp_path, args):
    done = project.run(args[0], recipe, "--run-dir", tmp_path, *args[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stdout.count("\n") == 1


def test_dry_run_counts_and_touches_nothing(recipe, tmp_path):
    done = project.run("run", recipe, "--run-dir", tmp_path / "run", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["arms"]["full"]["rows"] == 160
    assert plan["arms"]["full"]["shared_tokens"] > 36
    assert plan["rows"]["train"] == 120
    assert plan["tokens"].startswith("counted")
    assert plan["collect"]["teacher_parameters"] > 1000
    assert plan["train"]["steps"] == 42  # 108 rows in batches of 8, 3 epochs
    assert not (tmp_path / "run").exists()


def test_init_writes_a_recipe_that_loads_and_overwrites_nothing(tmp_path):
    done = project.run("init", tmp_path / "new", "--json")
    created = json.loads(done.stdout)["created"]
    assert [Path(path).name for path in created] == ["recipe.yaml", "messages.jsonl", "recipe.schema.json"]
    assert recipes.load(Path(created[0])).name == "my-recipe"
    plan = project.run("collect", created[0], "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "12 train, 4 eval" in plan.stdout
    again = project.run("init", tmp_path / "new")
    assert again.returncode == 2
    assert "already exists" in again.stderr


def test_doctor_finds_nothing_missing():
    done = project.run("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["missing"] == []
    assert found["versions"]["torch"]


def test_shipped_recipes_load():
    found = sorted((ROOT / "recipes").glob("*.yaml"))
    assert found
    for path in found:
        recipes.load(path)


@pytest.mark.parametrize(
    "words", [["colect", "x"], ["collect", "x", "--bogus"], ["collect"], ["bench", "x", "--max-seconds", "y"]]
)
def test_a_wrong_command_line_is_told_as_every_error_is(words):
    done = project.run(*words, "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    error = json.loads(done.stdout)["error"]
    assert (error["exit_code"], error["next"].endswith(" -h")) == (2, True)
