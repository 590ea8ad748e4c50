"""A signal ends a command whatever it is doing, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distillctl import interrupts
from tests.fixtures import processes

STOPPED = "A library's call does not return; stopped now."
HEAD = """if True:
    import hashlib, multiprocessing, os, signal, sys, time
    from distillctl import interrupts
    from distillctl.errors import Interrupted

    interrupts._STUCK_SECONDS = 1.0
    say = lambda text: os.write(1, (text + chr(10)).encode())
    without_end = lambda: hashlib.pbkdf2_hmac("sha512", b"", b"", 2**31 - 1)  # some ten minutes, without the GIL
"""


def ended(body: str, signals: dict[str, int]) -> tuple[int, list[str]]:
    """Exit code and lines of a program that is sent these signals, each once it has printed its line.

    A signal for a call is sent once the program computes, which it does only within the call.
    """
    process = subprocess.Popen([sys.executable, "-c", HEAD + body], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] in signals:
            assert lines[-1] != "calling" or processes.computes(process.pid)
            process.send_signal(signals[lines[-1]])
    return process.wait(processes.SECONDS), lines


@pytest.mark.parametrize("number", interrupts.SIGNALS)
@pytest.mark.parametrize("block", ["interrupts.handled(say)", "interrupts.handled(say), interrupts.deferred()"])
def test_a_call_that_does_not_return_is_ended(number: int, block: str) -> None:
    body = f"""
    with {block}:
        say("calling")
        without_end()
"""
    assert ended(body, {"calling": number}) == (
        128 + number,
        ["calling", STOPPED],
    )


def test_a_second_signal_is_heard_where_a_call_does_not_return() -> None:
    body = """
    with interrupts.handled(say), interrupts.deferred():
        say("waiting")
        while not interrupts.pending():
            time.sleep(0.01)
        time.sleep(2)
        say("calling")
        without_end()
"""
    code, lines = ended(body, {"waiting": signal.SIGINT, "calling": signal.SIGTERM})
    assert code == 128 + signal.SIGTERM
    assert lines[-2:] == ["calling", STOPPED]


def test_a_handled_signal_has_all_the_time_that_it_takes() -> None:
    body = """
    try:
        with interrupts.handled(say), interrupts.deferred():
            say("waiting")
            while not interrupts.pending():
                time.sleep(0.01)
            time.sleep(2)
            say("committed")
            interrupts.raise_if_pending()
    except Interrupted:
        say("told")
"""
    code, lines = ended(body, {"waiting": signal.SIGTERM})
    assert code == 0
    assert lines[-2:] == ["committed", "told"]


def test_a_forked_childs_signal_is_its_own() -> None:
    body = """
    with interrupts.handled(say):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
            while True:
                time.sleep(0.01)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        time.sleep(2)
        say("whole")
"""
    assert ended(body, {}) == (0, ["7", "whole"])


def test_nothing_is_left_open() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with interrupts.restored():
        open_files = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with interrupts.handled(print):
                pass
        end = time.monotonic() + 30
        while len(os.listdir("/proc/self/fd")) > open_files and time.monotonic() < end:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= open_files
    after = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(after)
    assert after == before


def test_what_python_drops_is_not_shown() -> None:
    body = """
    class Ends:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with interrupts.handled(say):
        sys.stderr = sys.stdout
        ends = Ends()
        del ends
        say("dropped" if interrupts.pending() else "raised")
"""
    assert ended(body, {}) == (0, ["dropped"])


def test_a_signal_while_the_command_line_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """The import is held up by a module of typer's name that sends the signal."""
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run(
        [sys.executable, "-m", "distillctl", "--help"],
        capture_output=True, text=True, timeout=processes.SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
