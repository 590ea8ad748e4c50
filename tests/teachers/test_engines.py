"""Whoever labels the rows, the soft labels are the same: one process, or several workers of which one is killed."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow as pa
import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.commands import dry_run
from distillctl.errors import RecipeError, UnavailableError
from distillctl.models import model_source
from distillctl.recipe import Collect
from distillctl.run_dir.workspace import Workspace
from distillctl.teachers import labelling
from distillctl.teachers.worker_pool import ShardTask, SharedPrefix, Views
from tests.fixtures import project, tiny, tiny_generate

pytestmark = pytest.mark.slow

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
RAY = ("collect.engine=ray", "collect.workers=2")


def shards(run):
    return {path.name: path.read_bytes() for path in (run / "collect" / "shards").glob("*.parquet")}


def labels(folder):
    return project.make(folder, rows=400)


def texts(folder):
    """A tiny teacher that writes, whose answers are drawn, as is what is kept of them."""
    tiny_generate.decoder().save_pretrained(folder / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(folder / "teacher")
    rows = tiny_generate.texts(120)
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"input": row, "reference": row[::-1]}) for row in rows))
    recipe = {
        "name": "texts",
        "task": {"kind": "generate", "stop": ["e"], "max_new_tokens": 10, "metrics": ["exact"],
                 "responses": {"kind": "sampling", "n": 2}, "soft_labels": {"kind": "sampled", "draws": 7}},
        "data": {"source": "rows.jsonl", "eval_rows": 24},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}},
        "teacher": {"model": "teacher", "batch_tokens": 60, "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "shard_rows": 4,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


# ── what is asked for ────────────────────────────────────────────────────────────────────────────


def test_settings_of_workers_are_for_ray(tmp_path):
    recipe = labels(tmp_path)
    with pytest.raises(RecipeError, match="workers is for engine: ray"):
        recipes.load(recipe, ["collect.workers=2"])
    assert recipes.load(recipe, [*RAY, "collect.gpus=0.5"]).collect == Collect(engine="ray", workers=2, gpus=0.5)


def test_a_served_teacher_needs_no_workers():
    served = {"kind": "openai", "model": "m", "base_url": "http://localhost:1/v1"}
    with pytest.raises(ValueError, match="ray starts teachers that run here; a served one is asked from one process"):
        tiny.recipe(teacher=served, collect={"engine": "ray"})
    assert tiny.recipe(teacher=served).collect.engine == "local"


def test_another_engine_makes_nothing_stale(tmp_path):
    recipe = labels(tmp_path)
    stage = pipeline.STAGES["collect"]
    assert pipeline.part(recipes.load(recipe), stage) == pipeline.part(recipes.load(recipe, RAY), stage)


def test_without_ray_that_is_told_before_anything_is_done(tmp_path, monkeypatch):
    recipe = recipes.load(labels(tmp_path), RAY)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    for ask in (
        lambda: pipeline.stage("collect", recipe, Workspace(tmp_path / "run")),
        lambda: dry_run.plan(recipe, Workspace(tmp_path / "run"), ["collect"]),
    ):
        with pytest.raises(UnavailableError, match=r"collect.engine: Ray is not installed") as caught:
            ask()
        assert caught.value.next == "pip install 'distillctl[ray]'"
    assert not (tmp_path / "run" / "collect").exists()


def test_a_dry_run_says_who_asks_the_teacher_and_imports_no_ray(tmp_path):
    recipe = labels(tmp_path)
    program = (
        "import sys; from distillctl import cli\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    )
    told = {}
    for name, settings in (("local", ()), ("ray", RAY)):
        words = [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(
            [sys.executable, "-c", program, "collect", recipe, "--dry-run", *words],
            capture_output=True,
            text=True,
            env=project.environment(),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told[name] = " ".join(done.stdout.split())
    assert "by one teacher in this process" in told["local"]
    assert "by 2 workers with 1 CPUs each, Ray on this machine" in told["ray"]


# ── workers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_description_is_small_and_its_worker_answers_alike_in_any_order(tmp_path):
    recipe = recipes.load(labels(tmp_path))
    description = labelling.Local(recipe.teacher, model_source.teacher(recipe), recipe.classify)
    there = pickle.dumps(description)
    assert len(there) < 4000
    context = list(range(4, 24))
    tasks, answers = [], tuple((4 + k,) for k in range(3))
    for arm, shared in (("full", 20), ("simplified", 0)):
        ends = [*context, 5][20 - shared :], [*context, 6, 7, 8][20 - shared :]
        prefix = SharedPrefix(arm, shared, *ends, answers=(answers, answers))
        tasks.append(ShardTask(arm, "eval", ["a", "b"], Views(prefix, ids=[[5], [6, 7, 8]], answers=[answers] * 2)))
    first, second = description.worker(), pickle.loads(there).worker()
    found = [first.label(task) for task in tasks]
    again = [second.label(pickle.loads(pickle.dumps(task))) for task in reversed(tasks)][::-1]
    for one, other in zip(found, again, strict=True):
        assert one.log_probs.tobytes() == other.log_probs.tobytes()
        assert one.tokens == other.tokens == 4
    assert abs(found[0].log_probs - found[1].log_probs).max() > 1e-3
    reader, teacher = description.reader(), first.reader
    assert reader.facts() == teacher.facts()
    assert (reader.max_length, reader.vocabulary) == (teacher.max_length, teacher.vocabulary)
    assert reader.stop_ids([]) == teacher.stop_ids([])


def test_what_a_worker_has_to_tell_comes_back_whole(tmp_path):
    from distillctl.teachers.ray_engine import _Labeller

    recipe = recipes.load(labels(tmp_path))
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"")
    actor = _Labeller(labelling.Local(recipe.teacher, model_source.teacher(recipe), recipe.classify))
    answer = actor(pa.table({"number": [3], "pickled": [pickle.dumps(None)]}))
    assert answer["number"].to_pylist() == [3]
    told = pickle.loads(answer["pickled"][0].as_py())
    assert isinstance(told, UnavailableError)
    assert (told.exit_code, told.where) == (5, str(tmp_path / "teacher"))
    assert "cannot be read" in str(told)


# ── Ray ──────────────────────────────────────────────────────────────────────────────────────────


def kill_one(process, run, after, killed):
    """kill -9 an actor's process as soon as so many shards are committed."""
    deadline = time.monotonic() + 900
    while process.poll() is None and time.monotonic() < deadline and not killed:
        if len(list((run / "collect" / "shards").glob("full-*.parquet"))) >= after:
            for child in psutil.Process(process.pid).children(recursive=True):
                if child.name().startswith("ray::MapWorker"):
                    child.kill()
                    killed.append(child.pid)
                    break
        time.sleep(0.002)


class Deadly:
    """Workers that die of their first task."""

    def reader(self):
        return None

    def worker(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_that_always_die_are_given_up(monkeypatch):
    from distillctl.teachers import ray_engine

    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    task = ShardTask("full", "eval", ["a"], Views(SharedPrefix("full", 0), texts=["a"]))
    with pytest.raises(UnavailableError, match="workers died before they answered"):  # noqa: SIM117
        with ray_engine.open_pool(Deadly(), Collect(engine="ray")) as pool:
            list(pool.map([("key", task)]))
    assert not ray_engine.ray.is_initialized()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("make", [labels, texts])
def test_two_workers_one_of_them_killed_give_the_soft_labels_of_one_process(tmp_path, make):
    recipe = make(tmp_path)
    done = project.run("collect", recipe, "--run-dir", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    command = project.command(
        "collect", recipe, "--run-dir", tmp_path / "run", "--json", "--set", RAY[0], "--set", RAY[1]
    )
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=project.environment()
    )
    killed = []
    killer = threading.Thread(target=kill_one, args=(process, tmp_path / "run", 3, killed))
    killer.start()
    out, err = process.communicate(timeout=900)
    killer.join()
    assert process.returncode == 0, err
    assert killed, "no actor was killed midway"
    assert shards(tmp_path / "run") == shards(tmp_path / "alone")
    found, alone = json.loads(out), Workspace(tmp_path / "alone").manifest("collect").facts
    assert found["reused_rows"] == 0
    assert found["scored_rows"] == alone["scored_rows"]
    assert Workspace(tmp_path / "run").manifest("collect").facts["teacher"] == alone["teacher"]
