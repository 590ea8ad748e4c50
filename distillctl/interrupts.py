"""SIGINT and SIGTERM. Where work would be lost they wait for the next safe point; everywhere else they end the command
at once, and so does a second one. Ended at once is still safe: what is not whole was never committed.

A loop that commits as it goes runs in `deferred`, and calls `check` whenever what is done is committed. What only
commits at its end need not be deferred; it calls `check` now and then all the same, because Python drops an exception
that a handler raises while an object is being finalized.
"""

from __future__ import annotations

import signal
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


@dataclass
class _State:
    came: int | None = None
    """The first signal's number."""
    deferred: int = 0
    """How many blocks deep."""
    say: Callable[[str], None] | None = None
    """Tells the user; None outside of `handled`."""


_state = _State()


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
    install()
    try:
        yield
    finally:
        ignore()


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


def check() -> None:
    """A safe point: Interrupted when a signal has come. Any thread may ask."""
    if _state.came is not None:
        raise Interrupted(_state.came)


def sleep(seconds: float) -> None:
    """As `time.sleep`, but a signal ends it: Interrupted. For waits in which nothing is done, in any thread."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _WAIT_SECONDS))
    check()


def _came(number: int, frame: FrameType | None) -> Any:
    again, _state.came = _state.came is not None, _state.came or number
    if again or not _state.deferred:
        raise Interrupted(number)
    if _state.say is not None:
        _state.say("finishing what is under work; once more to stop at once")


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
