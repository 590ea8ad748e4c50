"""SIGINT and SIGTERM: a first one waits for the next safe point where work would be lost, a second one for nothing."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time

import psutil
import pytest

from distillctl import interrupts
from distillctl.errors import Interrupted
from tests.fixtures import project


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
    interrupts.raise_if_pending()
    with pytest.raises(Interrupted) as raised:
        send(number)
    assert raised.value.exit_code == code
    assert said == []
    with pytest.raises(Interrupted):  # an exception that got lost is raised again
        interrupts.raise_if_pending()


def test_deferred_to_the_next_safe_point_and_a_second_one_at_once(said):
    with interrupts.deferred():
        interrupts.raise_if_pending()
        send(signal.SIGTERM)
        assert interrupts.pending()
        assert len(said) == 1
        with pytest.raises(Interrupted) as raised:
            interrupts.raise_if_pending()
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
        interrupts.raise_if_pending()


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


def test_who_has_nothing_to_lose_never_ignores_a_signal():
    """A rank that waits for a dead one must end when its launcher says so."""

    def handlers():
        return [signal.getsignal(number) for number in interrupts.SIGNALS]

    by_default, ignored = [signal.SIG_DFL] * 2, [signal.SIG_IGN] * 2
    with interrupts.restored():
        with interrupts.handled(print, left=True):
            assert handlers() == by_default
        assert handlers() == by_default
        with interrupts.handled(print, left=True):
            interrupts.install()  # it has joined the others
        assert handlers() == ignored


# ── the command line ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_no_worker_of_bench_is_left_behind_when_a_terminal_interrupts_them_all(tmp_path):
    """Signals at random moments to every stage: `tests.durability.signals`."""
    recipe, run = project.finished(tmp_path, without=("bench", "report"))
    process = subprocess.Popen(
        project.command("bench", recipe, "--run-dir", run, "--json"),
        env=project.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        workers: list[psutil.Process] = []
        while not workers and process.poll() is None:
            with contextlib.suppress(psutil.Error):  # one that ends meanwhile
                children = psutil.Process(process.pid).children()
                workers = [one for one in children if "distillctl.runtimes.worker" in one.cmdline()]
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[1]
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # a command that hangs is this test's failure, and no other's
    assert process.returncode == 130
    assert json.loads(out)["error"]["exit_code"] == 130  # one object
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive
    assert not (run / "bench").exists()
