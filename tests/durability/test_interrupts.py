"""SIGINT and SIGTERM: a first one waits for the next safe point where work would be lost, a second one for nothing."""

import contextlib
import json
import os
import signal
import threading
import time

import psutil
import pytest

from distillctl import interrupts
from distillctl.errors import Interrupted
from distillctl.workspace import MANIFEST, Workspace
from tests import project
from tests.durability.sending import send_when


@pytest.fixture
def said():
    """What the user is told, with signals handled."""
    notes = []
    with interrupts.restored(), interrupts.handled(notes.append):
        yield notes


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0)  # where the handler runs at the latest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_at_once_where_nothing_would_be_lost(said, number, code):
    interrupts.check()
    with pytest.raises(Interrupted) as raised:
        send(number)
    assert raised.value.exit_code == code
    assert said == []
    with pytest.raises(Interrupted):  # an exception that got lost is raised again
        interrupts.check()


def test_deferred_to_the_next_safe_point_and_a_second_one_at_once(said):
    with interrupts.deferred():
        interrupts.check()
        send(signal.SIGTERM)
        assert interrupts.pending()
        assert len(said) == 1
        with pytest.raises(Interrupted) as raised:
            interrupts.check()
        assert raised.value.exit_code == 143
        with pytest.raises(Interrupted) as raised:
            send(signal.SIGINT)
        assert raised.value.exit_code == 130
    assert len(said) == 1


def test_what_was_deferred_is_raised_behind_the_block_too(said):
    with interrupts.deferred():
        with interrupts.deferred():
            send()
        assert interrupts.pending()
    with pytest.raises(Interrupted):
        interrupts.check()


def test_a_sleep_ends_in_any_thread(said):
    ended = []

    def work():
        try:
            interrupts.sleep(60)
        except Interrupted:
            ended.append(True)

    thread = threading.Thread(target=work)
    with interrupts.deferred():
        thread.start()
        send()
        thread.join(30)
        assert ended == [True]
        with pytest.raises(Interrupted):
            interrupts.sleep(60)


def test_handlers_are_put_back_and_left_alone_in_other_threads():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    interrupts.ignore()  # outside of a command
    with interrupts.restored(), interrupts.handled(print):
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] != before
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before

    def work():
        with interrupts.restored(), interrupts.handled(print):
            found.extend(signal.getsignal(number) for number in interrupts.SIGNALS)

    found: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before


def test_nothing_ends_the_last_words(said):
    interrupts.ignore()
    send(signal.SIGINT)
    send(signal.SIGTERM)
    assert not interrupts.pending()


# ── the command line ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    recipe = project.make(folder, train={"epochs": 20, "checkpoint_every": 1000})
    for stage in ("collect", "train"):
        done = project.run(stage, recipe, "--run-dir", folder / "run")
        assert done.returncode == 0, done.stderr
    return folder


def outputs(run, stage):
    manifest = Workspace(run).manifest(stage)
    return {name: output.sha256 for name, output in manifest.outputs.items() if name != "metrics.jsonl"}


@pytest.mark.slow
def test_collect_and_train_end_at_a_safe_point_and_go_on_from_there(unbroken, tmp_path):
    recipe, run = unbroken / "recipe.yaml", tmp_path / "run"
    shards = run / "collect" / "shards"
    args = ("collect", recipe, "--run-dir", run, "--json")
    done = send_when(lambda: list(shards.glob("*.parquet")), *args, number=signal.SIGINT, group=True)
    assert done.returncode == 130
    assert json.loads(done.stdout)["error"]["exit_code"] == 130  # one object
    assert "once more to stop at once" in done.stderr
    assert not (run / "collect" / MANIFEST).exists()
    there = len(list(shards.iterdir()))
    assert there == len(list(shards.glob("*.parquet")))  # nothing half-written is left
    found = json.loads(project.run(*args).stdout)
    assert found["reused_rows"] == there * 8
    assert outputs(run, "collect") == outputs(unbroken / "run", "collect")

    args = ("train", recipe, "--run-dir", run, "--json")
    log = run / "train" / "metrics.jsonl"
    done = send_when(lambda: log.exists() and log.stat().st_size, *args, number=signal.SIGTERM)
    assert done.returncode == 143
    [kept] = (run / "train" / "checkpoints").iterdir()  # none was due
    step = int(kept.name.rpartition("-")[2])
    found = json.loads(project.run(*args).stdout)
    assert found["resumed_from"] == step
    assert outputs(run, "train") == outputs(unbroken / "run", "train")


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_loses_no_more_than_a_kill(unbroken, tmp_path):
    recipe, run = unbroken / "recipe.yaml", tmp_path / "run"
    shards = run / "collect" / "shards"
    args = ("collect", recipe, "--run-dir", run)
    done = send_when(lambda: list(shards.glob("*.parquet")), *args, number=signal.SIGINT, times=2)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.run(*args).returncode == 0
    assert outputs(run, "collect") == outputs(unbroken / "run", "collect")


@pytest.mark.slow
def test_no_worker_of_bench_is_left_behind(unbroken):
    recipe, run = unbroken / "recipe.yaml", unbroken / "run"
    for stage in ("export", "quantize"):
        done = project.run(stage, recipe, "--run-dir", run)
        assert done.returncode == 0, done.stderr
    workers = []

    def started():
        with contextlib.suppress(psutil.Error):  # one that ends meanwhile
            mine = psutil.Process().children(recursive=True)
            workers[:] = [one for one in mine if "distillctl.runtimes.worker" in one.cmdline()]
        return workers

    done = send_when(started, "bench", recipe, "--run-dir", run, number=signal.SIGINT, group=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert not (run / "bench" / MANIFEST).exists()
