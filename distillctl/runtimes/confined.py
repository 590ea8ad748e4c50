"""Run a worker's module so that it cannot outlive its parent: ``python -m distillctl.runtimes.confined PARENT MODULE``.

A graph runs in native code, where no Python handler is called and nobody reads stdin. So it is the kernel that ends the
process, as soon as its parent is gone, and when it takes more memory or processor time than `limit` allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import runpy
import signal
import sys
import threading
import time

from distillctl.untrusted import limits

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.5
LEAST_SECONDS, START_UPS = 2.0, 6.0
"""Processor time that any graph gets beyond what its size allows: these seconds or, on a slow machine, this multiple of
the time that the process took to start."""


def main() -> None:
    """Run a module as a program that ends with its parent."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    end_with(parent)
    del sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def end_with(parent: int) -> None:
    """End this process as soon as its parent ends, in whatever way. parent: its process id."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before this process watched it
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def limit(data_bytes: int | None = None, seconds: float | None = None) -> None:
    """Limit the memory (heap and writable private maps) and the processor time of this process.

    data_bytes: default: the machine's memory. seconds: further processor time, added to `LEAST_SECONDS` or more.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_DATA, limits.machine_bytes() if data_bytes is None else data_bytes)
    if seconds is not None:
        used = time.process_time()
        _lower(resource.RLIMIT_CPU, round(1 + used + max(LEAST_SECONDS, START_UPS * used) + seconds))


def _lower(resource_kind: int, maximum: int) -> None:
    """Lower a limit unless it is lower already. On systems without it, the parent's timeout remains."""
    before, hard = resource.getrlimit(resource_kind)
    lowest = min([maximum, *(value for value in (before, hard) if value != resource.RLIM_INFINITY)])
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource_kind, (lowest, hard))


if __name__ == "__main__":
    main()
