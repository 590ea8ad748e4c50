"""SIGINT and SIGTERM. Where work would be lost they wait for the next safe point; everywhere else they end the command
at once, and so does a second one. Ended at once is still safe: what is not whole was never committed.

A loop that commits as it goes runs in `deferred`, and calls `check` whenever what is done is committed. What only
commits at its end need not be deferred; it calls `check` now and then all the same, because Python drops an exception
that a handler raises while an object is being finalized or a process forks. Nobody needs to read of that.

Python calls a handler only between two steps of its own. Where a library's call does not return, as of a graph that
runs without end, no handler is called: a thread then ends the process.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from distillctl.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAIT_SECONDS = 0.1
_STUCK_SECONDS = 10.0
"""How long a signal may wait for its handler. Single calls of PyTorch and ONNX Runtime take less."""
_LATE_SECONDS = 1.0
"""The watching thread may hear of a signal this much later than its handler."""


@dataclass
class _SignalState:
    came: int | None = None
    """The first signal's number."""
    handled_at: float = -math.inf
    """When a handler was last called, on the monotonic clock."""
    deferred: int = 0
    """How many blocks deep."""
    say: Callable[[str], None] | None = None
    """Tells the user; None outside of `handled`."""


_state = _SignalState()


@contextmanager
def restored() -> Iterator[None]:
    """Around a whole command: when it is over, signals mean what they meant before."""
    before = {number: signal.getsignal(number) for number in SIGNALS} if _is_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.came, _state.deferred, _state.say = None, 0, None


@contextmanager
def handled(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block signals are handled; behind it they are ignored, so that the last words come whole.

    say: one note for the user, from within a handler, where buffered output may not be used.
    """
    _state.say = say
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if isinstance(dropped.exc_value, Interrupted) else unraisable(dropped)
    install()
    try:
        with _watched():
            yield
    finally:
        ignore()
        sys.unraisablehook = unraisable


def install() -> None:
    """Handle signals, again where a library has put its own handler in place. Only the main thread can."""
    if _state.say is not None and _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, _came)


def leave() -> None:
    """Signals do what they do to any program: end it, without a word. For waits that Python cannot interrupt."""
    if _state.say is not None and _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def ignore() -> None:
    """Nothing ends the command any more: its result is being told. Without effect outside of `handled`."""
    if _state.say is not None and _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block a first signal waits for the next `check`, which may come behind the block."""
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1


def pending() -> bool:
    """Whether the next `check` will raise: time to commit what there is."""
    return _state.came is not None


def raise_if_pending() -> None:
    """A safe point: Interrupted when a signal has come. Any thread may ask."""
    if _state.came is not None:
        raise Interrupted(_state.came)


def sleep(seconds: float) -> None:
    """As `time.sleep`, but a signal ends it: Interrupted. For waits in which nothing is done, in any thread."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        raise_if_pending()
        time.sleep(min(left, _WAIT_SECONDS))
    raise_if_pending()


def _came(number: int, frame: FrameType | None) -> Any:
    _state.handled_at = time.monotonic()
    again, _state.came = _state.came is not None, _state.came or number
    if again or not _state.deferred:
        raise Interrupted(number)
    if _state.say is not None:
        _state.say("finishing what is under work; once more to stop at once")


@contextmanager
def _watched() -> Iterator[None]:
    """Within the block a thread hears of each signal at once, and ends the process if its handler is not called."""
    if not _is_main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_when_stuck, args=(read,), daemon=True)
    try:
        watcher.start()
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


def _end_when_stuck(read: int) -> None:
    """Wait for signals' numbers on the pipe ``read``, until its other end is closed.

    The process ends as after a kill: what was committed stays, and processes that it started end with it.
    """
    number, came_at = 0, math.inf
    while True:
        readable, _, _ = select.select([read], [], [], None if came_at == math.inf else _WAIT_SECONDS)
        if readable:
            received = os.read(read, 1)
            if not received:
                os.close(read)
                return
            if received[0] in SIGNALS and came_at == math.inf:
                number, came_at = received[0], time.monotonic()
        if _state.handled_at > came_at - _LATE_SECONDS:
            came_at = math.inf
        elif time.monotonic() > came_at + _STUCK_SECONDS:
            if _state.say is not None:
                _state.say("a library's call does not return; stopped at once")
            os._exit(128 + number)


def _forget_watcher() -> None:
    """In a forked child: its signals are not its parent's."""
    if _is_main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_watcher)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
