"""A loop says how far it is: in place on a terminal of any width, line by line in a log."""

from __future__ import annotations

import ast
import io
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import distillctl
from distillctl import console
from distillctl.terminal import progress
from distillctl.terminal.progress import LiveProgress, LoggedProgress
from tests.fixtures import project
from tests.fixtures.processes import wait_until


def logged(work, seconds: float = 0.02, label: str = "collect", total: float = 1000, unit: str = "rows") -> list[str]:
    """The lines that a loop writes; ``work`` is given its progress, and a function that waits for so many lines."""
    printed = io.StringIO()

    def wait_for(lines: int) -> None:
        assert wait_until(lambda: printed.getvalue().count("\n") >= lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_SECONDS", seconds)
        with LoggedProgress(Console(file=printed, width=40), label, total, unit) as bar:
            work(bar, wait_for)
    return printed.getvalue().splitlines()


def test_a_log_gets_rows_rate_and_time_left():
    def work(bar, wait_for):
        for line in range(1, 5):
            bar.advance(10, arm="full")
            wait_for(line)

    lines = logged(work)
    assert re.fullmatch(
        r"collect: [\d,]+ of 1,000 rows, [\d,.]+ rows/s, about \d+ (s|min) left, arm full", lines[-1]
    ), lines


def test_a_step_that_takes_minutes_does_not_silence_the_log():
    lines = logged(lambda bar, wait_for: wait_for(3))
    assert set(lines) == {"collect: 0 of 1,000 rows"}


def test_a_short_loop_writes_nothing():
    assert logged(lambda bar, wait_for: bar.advance(1000), seconds=600) == []


def test_no_line_comes_after_the_loop():
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_SECONDS", 0.02)
        with LoggedProgress(Console(file=printed), "collect", 10, "rows"):
            pass
        time.sleep(0.1)
    assert printed.getvalue() == ""


def test_what_an_earlier_command_did_is_no_speed_of_this_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress(Console(), "train", 1000, "steps")
    bar.skip(900)
    assert bar.rate is None
    for _ in range(10):
        now[0] += 2
        bar.advance(1)
    assert bar.count == "910/1,000"
    assert bar.rate == pytest.approx(0.5)
    assert bar.seconds_left == pytest.approx(180)


def test_the_rate_is_that_of_the_last_minutes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress(Console(), "train", 1e6, "steps")
    for step in range(4000):
        now[0] += 0.1 if step < 3000 else 10
        bar.advance(1)
    assert bar.rate == pytest.approx(0.1, rel=0.05)
    assert len(bar._seen) < 1000


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "3 s"), (89, "89 s"), (600, "10 min"), (5400, "1 h 30 min"), (90000, "25 h 0 min")]
)
def test_time_left_is_as_exact_as_an_estimate_is(seconds, said):
    assert progress.duration(seconds) == said


@given(st.integers(1, 200), st.integers(1, 10**7), st.integers(0, 10**7), st.booleans())
def test_the_bar_fits_any_terminal_and_its_numbers_are_whole(width, total, done, fields):
    bar = LiveProgress(Console(file=io.StringIO(), width=width, force_terminal=True), "train student", total, "rows")
    bar._spinner = progress.Spinner("dots")
    bar.advance(min(done, total), **({"loss": "0.123", "tokens": "12,345/s"} if fields else {}))
    printed = io.StringIO()
    Console(file=printed, width=width).print(bar._drawn())
    lines = printed.getvalue().splitlines()
    assert len(lines) <= 1
    for number in re.findall(r"[\d,.:/-]*\d[\d,.:/-]*s?", "".join(lines)):
        assert number in (bar.count, "0.123", "12,345/s") or re.fullmatch(r"-:--:--|\d+:\d\d:\d\d", number), lines
    if width >= 30:
        assert bar.count in lines[0]


SAY = """
from distillctl import console
from distillctl.terminal import progress
import time
progress.EVERY_SECONDS = 0.05
console.configure(verbosity={verbosity})
with console.progress("train student", 500, "steps") as bar:
    for _ in range(10):
        time.sleep(0.03)
        bar.advance(1, loss="0.5")
"""


@pytest.mark.parametrize(("verbosity", "ci"), [(0, ""), (0, "1"), (-1, "")])
def test_without_a_terminal_progress_is_lines_on_stderr(verbosity, ci):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", SAY.format(verbosity=verbosity)],
        capture_output=True, text=True, check=True, env={**project.environment(), "CI": ci},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    if verbosity < 0:
        assert lines == []
    else:
        assert lines
        assert all(line.startswith("train student: ") for line in lines)
        assert "of 500 steps" in lines[-1]
        assert "loss 0.5" in lines[-1]


def test_every_bar_is_one_of_these():
    """No loop draws a bar of its own, which would be silent in a log."""
    for path in Path(distillctl.__file__).parent.rglob("*.py"):
        if path.name in ("progress.py", "console.py"):
            continue
        names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not {"rich.progress", "rich.live", "tqdm", "tqdm.auto"} & names, path
    assert console.progress is not None
