"""Handle SIGINT and SIGTERM.

A signal ends the command at once, and so does a second signal; that is safe, because nothing incomplete is ever
committed. Only where work would be lost does the first signal wait for the next safe point: a loop that commits step by
step runs in `deferred` and calls `raise_if_pending` after each commit. Code that commits only at its end is not
deferred, but calls `raise_if_pending` now and then: Python drops an exception that a handler raises while an object is
finalized or a process forks.

Python calls a handler only between two of its own instructions. If a library's call does not return, such as a graph
that runs for ever, no handler is called, and a watching thread ends the process.
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
"""Time limit for calling a signal's handler. A single call of PyTorch or ONNX Runtime takes less."""
_LATE_SECONDS = 1.0
"""The watching thread may see a signal this much later than the handler does."""


@dataclass
class _SignalState:
    came: int | None = None
    """The first signal's number."""
    handled_at: float = -math.inf
    """When a handler was last called, on the monotonic clock."""
    deferred: int = 0
    """Depth of nested `deferred` blocks."""
    show: Callable[[str], None] | None = None
    """Shows a note to the user. None outside of `handled`."""
    left: bool = False
    """Whether `leave` was called after the last `install`."""


_state = _SignalState()


@contextmanager
def restored() -> Iterator[None]:
    """Restore the signal handlers when the block, a whole command, ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS} if _is_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.came, _state.deferred, _state.show, _state.left = None, 0, None, False


@contextmanager
def handled(show: Callable[[str], None], left: bool = False) -> Iterator[None]:
    """Handle signals within the block; ignore them after it, so that the last message is complete.

    show: shows a note. It is called from a handler, where buffered output may not be used. left: begin as after
    `leave`, so that there is no moment in which a signal does not end the process.
    """
    _state.show = show
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if isinstance(dropped.exc_value, Interrupted) else unraisable(dropped)
    leave() if left else install()
    try:
        with _watched():
            yield
    finally:
        if not _state.left:
            ignore()
        sys.unraisablehook = unraisable


def install() -> None:
    """Install the handlers, also after a library replaced them. Only the main thread can."""
    if _state.show is not None and _is_main_thread():
        _state.left = False
        for number in SIGNALS:
            signal.signal(number, _on_signal)


def leave() -> None:
    """Let signals end the process silently, as they do by default. For waits that Python cannot interrupt."""
    if _state.show is not None and _is_main_thread():
        _state.left = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def ignore() -> None:
    """Ignore signals from now on, because the result is being printed. Without effect outside of `handled`."""
    if _state.show is not None and _is_main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first signal wait for the next `raise_if_pending`, which may come after the block."""
    _state.deferred += 1
    try:
        yield
    finally:
        _state.deferred -= 1


def pending() -> bool:
    """Tell whether the next `raise_if_pending` will raise, so that the caller commits what it has."""
    return _state.came is not None


def raise_if_pending() -> None:
    """Raise Interrupted if a signal has arrived. Call it at safe points, from any thread."""
    if _state.came is not None:
        raise Interrupted(_state.came)


def sleep(seconds: float) -> None:
    """Sleep like `time.sleep`, but raise Interrupted when a signal arrives. Any thread may call it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        raise_if_pending()
        time.sleep(min(left, _WAIT_SECONDS))
    raise_if_pending()


def _on_signal(number: int, frame: FrameType | None) -> Any:
    _state.handled_at = time.monotonic()
    again, _state.came = _state.came is not None, _state.came or number
    if again or not _state.deferred:
        raise Interrupted(number)
    if _state.show is not None:
        _state.show("Finishing the current step; press Ctrl-C again to stop now.")


@contextmanager
def _watched() -> Iterator[None]:
    """Watch signals in a thread, which ends the process if a handler is not called in time."""
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
    """Read signal numbers from the pipe ``read`` until its other end is closed.

    The process ends as if it were killed: what was committed stays, and its child processes end with it.
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
            if _state.show is not None:
                _state.show("A library's call does not return; stopped now.")
            os._exit(128 + number)


def _forget_watcher() -> None:
    """Stop watching in a forked child, whose signals are not its parent's."""
    if _is_main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_watcher)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
