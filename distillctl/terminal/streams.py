"""Standard output and standard error that never make a command fail while it works.

A reader that has gone (`| head`) and a full device are no reason to lose hours of work. After the first error a stream
drops everything, and the command reports at its end that output was lost.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from typing_extensions import Buffer

STDOUT, STDERR = 1, 2
_READER_IS_GONE = (errno.EPIPE, errno.ECONNRESET)


class _Lenient(io.RawIOBase):
    """The bytes of a file descriptor. The first error is kept as `failure`, and everything after it is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Buffer, /) -> int:
        while self.failure is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


_guarded: dict[int, _Lenient] = {}


def guard() -> None:
    """Replace stdout and stderr by lenient streams, and any closed one by the null device.

    Otherwise the next file that is opened would get the number of the closed stream, and libraries would print into it.
    """
    for descriptor in (0, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    sys.stdout = _stream(STDOUT, sys.stdout)
    sys.stderr = _stream(STDERR, sys.stderr)


def _stream(descriptor: int, before: Any) -> TextIO:
    raw = _guarded[descriptor] = _Lenient(descriptor)
    encoding = "utf-8" if before is None else before.encoding
    by_line = descriptor == STDERR or raw.isatty()
    # Replace characters that the terminal's encoding lacks, instead of losing the rest.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=by_line)


def lost() -> OSError | None:
    """Return the error that lost output on stdout, or None. A reader that has seen enough is not an error."""
    sys.stdout.flush()
    failure = _guarded[STDOUT].failure if STDOUT in _guarded else None
    return None if failure is None or failure.errno in _READER_IS_GONE else failure
