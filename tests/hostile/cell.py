"""A command run in a forked child that is watched: what it opens, starts and connects to, its memory and its time."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillctl.runtimes import process
from tests.fixtures import costs

CPU_SECONDS, WALL_SECONDS = 10, 300
"""What ends a child that hangs. The promise (`verdicts`) is below, and in processor time: the machine may be busy."""
GIB = 1 << 30


@dataclass(frozen=True)
class Ended:
    """How a child ended. seconds: of processor time; peak_bytes: resident, the warm parent's included."""

    code: int
    stderr: str
    escapes: list[str]
    seconds: float
    peak_bytes: int


def run(work: Callable[[], int | None], case: Path, writable: Sequence[Path], log: Path) -> Ended:
    """``work`` in a child whose folder is ``case``/work. writable: the only places where it may write; log: a new file
    for what it prints. An exception that ``work`` lets through is told as code 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("w+b") as told, log.with_suffix(".escapes").open("w+") as seen:
        child = os.fork()
        if child == 0:
            _child(work, case, [path.resolve() for path in writable], told.fileno(), seen.fileno())
        _, status, used = os.wait4(child, 0)
        told.seek(0)
        seen.seek(0)
        stderr, escapes = told.read().decode("utf-8", "replace"), seen.read().splitlines()
    seconds = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), stderr, escapes, seconds, used.ru_maxrss << 10)


def _child(work: Callable[[], int | None], case: Path, writable: list[Path], told: int, seen: int) -> None:
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        os.dup2(told, 2)
        os.chdir(case / "work")
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (costs.data_bytes() + GIB, costs.data_bytes() + GIB))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        sys.addaudithook(_watch(case.resolve(), writable, seen))
        code = work() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# ── what Python itself tells of ──────────────────────────────────────────────────────────────────

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),),
    "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),), "os.setxattr": ((0, None),),
}  # fmt: skip
"""Event → which of its arguments are paths that it changes, and the folder's descriptor that each starts from."""
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
_TALKS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
_FOREIGN = ("os", "posix", "nt", "subprocess", "sys", "builtins", "runpy", "pty", "socket", "shutil", "importlib")


def _watch(case: Path, writable: list[Path], seen: int) -> Callable[[str, tuple[Any, ...]], None]:
    code_may_not_come_from = str(case) + os.sep
    allowed = tuple(f"{path}{os.sep}" for path in writable)

    def outside(path: Any, folder: int | None = None) -> bool:
        if isinstance(path, int) or path is None:
            return False
        start = "." if folder is None or folder < 0 else f"/proc/self/fd/{folder}"
        named = os.path.join(start, os.fsdecode(path))
        whole = os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))
        return whole != os.devnull and not f"{whole}{os.sep}".startswith(allowed)

    def note(event: str, what: Any) -> None:
        os.write(seen, f"{event}: {what!r}"[:500].replace("\n", " ").encode("utf-8", "replace") + b"\n")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if ((mode and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES)) and outside(path):
                note(event, path)
        elif event in _CHANGES:
            for path, folder in _CHANGES[event]:
                if outside(args[path], None if folder is None else args[folder]):
                    note(event, args[path])
        elif event == "subprocess.Popen" and tuple(args[1][: len(process.COMMAND)]) == process.COMMAND:
            pass  # our own worker, in which a graph is run
        elif event in _STARTS or event in _TALKS:
            note(event, args[:2])
        elif event == "exec":
            if getattr(args[0], "co_filename", "").startswith(code_may_not_come_from):
                note(event, args[0].co_filename)
        elif event == "pickle.find_class" and args[0].split(".")[0] in _FOREIGN:
            note(event, args)

    return hook
