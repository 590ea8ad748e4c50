"""kill -9 while collecting and while training: what is done is kept, and the end is the same, bit for bit."""

import json
import os
import signal

import pytest

from distillctl.workspace import MANIFEST, Workspace
from tests import project
from tests.durability.signals import send_when

SLOWER = {"train": {"epochs": 20, "checkpoint_every": 20, "control": True}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    recipe = project.make(folder, **SLOWER)
    for stage in ("collect", "train"):
        done = project.run(stage, recipe, "--run-dir", folder / "run")
        assert done.returncode == 0, done.stderr
    return folder


def outputs(run, stage):
    manifest = Workspace(run).manifest(stage)
    return {name: output.sha256 for name, output in manifest.outputs.items() if name != "metrics.jsonl"}


@pytest.mark.slow
def test_killed_collect_and_train_end_in_the_same_bits(unbroken, tmp_path):
    recipe, run = unbroken / "recipe.yaml", tmp_path / "run"
    shards = run / "collect" / "shards"
    killed = send_when(lambda: len(list(shards.glob("*.parquet"))) >= 7, "collect", recipe, "--run-dir", run)
    assert killed.returncode == -signal.SIGKILL
    assert not (run / "collect" / MANIFEST).exists()
    there = len(list(shards.glob("*.parquet")))
    done = project.run("collect", recipe, "--run-dir", run, "--json")
    found = json.loads(done.stdout)
    assert found["reused_rows"] >= there * 8 >= 56  # at most the shard under work was lost
    assert found["scored_rows"] + found["reused_rows"] == 240
    assert f"{found['reused_rows']}" in done.stderr or "are there already" in done.stderr
    assert outputs(run, "collect") == outputs(unbroken / "run", "collect")

    checkpoints = run / "train" / "checkpoints"
    killed = send_when(lambda: list(checkpoints.glob("student-*-step-00006*")), "train", recipe, "--run-dir", run)
    assert killed.returncode == -signal.SIGKILL
    done = project.run("train", recipe, "--run-dir", run, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 60 <= found["resumed_from"] < found["steps"]
    assert found["resumed_from"] % 20 == 0
    assert f"student goes on from step {found['resumed_from']}" in done.stderr
    assert outputs(run, "train") == outputs(unbroken / "run", "train")
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["run"] == "student" and "loss" in line]
    assert steps == list(range(1, found["steps"] + 1))


@pytest.mark.slow
def test_a_kill_while_the_control_trains_keeps_the_student(unbroken, tmp_path):
    recipe, run = unbroken / "recipe.yaml", tmp_path / "run"
    assert project.run("collect", recipe, "--run-dir", run).returncode == 0
    checkpoints = run / "train" / "checkpoints"
    send_when(lambda: list(checkpoints.glob("control-*-step-00002*")), "train", recipe, "--run-dir", run)
    done = project.run("train", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert "control goes on from step" in done.stderr
    assert outputs(run, "train") == outputs(unbroken / "run", "train")


def test_a_second_process_is_refused_and_a_dead_holder_is_not_waited_for(unbroken, tmp_path):
    recipe, run = unbroken / "recipe.yaml", tmp_path / "run"
    with Workspace(run).lock():
        done = project.run("collect", recipe, "--run-dir", run)
    assert done.returncode == 5
    assert f"in use by process {os.getpid()}" in done.stderr
    (run / ".lock").write_text("process 1 on another machine")
    assert project.run("collect", recipe, "--run-dir", run).returncode == 0
