"""The command line in forks of a process that has imported all it needs and computed nothing: such a victim costs no
start, and a fork of a process without threads is as good as a new one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distillctl
from tests.fixtures import costs, project

PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Ended:
    """code: as `subprocess` has it."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float


def preload(*more: str) -> None:
    """Import what stages import. Descendants whose parent is killed become ours."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ.update(project.environment())
    for module in pkgutil.walk_packages(distillctl.__path__, "distillctl."):
        if ".benchmarks" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in more:
        importlib.import_module(name)


def learn(run: Callable[[Callable[[], object]], Any]) -> None:
    """Import what ``run`` imports besides; it calls what it is given in the process that has imported it."""
    with tempfile.NamedTemporaryFile("r") as file:
        run(lambda: Path(file.name).write_text("\n".join(sys.modules)))
        with contextlib.redirect_stdout(io.StringIO()):
            for name in file.read().split("\n"):
                if name not in sys.modules and name != "__main__":
                    with contextlib.suppress(Exception):
                        importlib.import_module(name)


class Victim:
    """``distillctl *args`` in a fork; ``prepare`` runs in it before, ``finish`` behind."""

    def __init__(
        self, *args: Any, prepare: Callable[[], None] = lambda: None, finish: Callable[[], None] = lambda: None
    ) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed in wait)
        self._began = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _become(os.open(os.devnull, os.O_RDONLY), self._out.fileno(), self._err.fileno())
            _exit(lambda: _command(args, prepare), finish)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.perf_counter() - self._began
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        cpu = usage.ru_utime + usage.ru_stime
        return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], seconds, cpu)


def run(*args: Any, **hooks: Any) -> Ended:
    """To its end."""
    return Victim(*args, **hooks).wait()


def call(body: Callable[[], Any]) -> None:
    """Run it in a fork of its own; RuntimeError with what it said when it fails."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            _become(os.open(os.devnull, os.O_RDONLY), said.fileno(), said.fileno())
            _exit(body)
        if os.waitpid(pid, 0)[1]:
            said.seek(0)
            raise RuntimeError(said.read().decode(errors="replace"))


def orphans(seconds: float = 30.0) -> int:
    """How many descendants of killed victims are still at work after so long."""
    end = time.monotonic() + seconds
    while True:
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if found == 0:
            if time.monotonic() > end:
                return len(list(_children()))
            time.sleep(0.01)


def signal_after(cpu_seconds: float, number: int = signal.SIGKILL) -> None:
    """A signal for this process once it has computed for so long: the same moment on a busy machine and on an idle one.

    A POSIX timer on the process's CPU clock, timer_create(2).
    """
    event = (ctypes.c_int * 16)()
    event[2], event[3] = number, 0  # after the 8 bytes of sigval: sigev_signo, SIGEV_SIGNAL
    timer = ctypes.c_void_p()
    if _libc.timer_create(2, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    whole, part = divmod(round(cpu_seconds * 1e9), 10**9)
    when = (ctypes.c_long * 4)(0, 0, whole, max(part, 1))
    if _libc.timer_settime(timer, 0, ctypes.byref(when), None):
        raise OSError(ctypes.get_errno(), "timer_settime")


class ForkedWorker:
    """What bench needs of `subprocess.Popen` for its workers, without the start of an interpreter."""

    def __init__(self, command: tuple[str, ...], *, stderr: Any, env: dict[str, str], **_: Any) -> None:
        asked, answered = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _become(asked[0], answered[1], stderr.fileno())
            os.closerange(3, 4096)  # the lock, and the pipes of others
            os.environ.update(env)
            _allow_what_is_inherited()
            _exit(importlib.import_module(command[-1]).main)
        os.close(asked[0])
        os.close(answered[1])
        self.stdin = open(asked[1], "w", encoding="utf-8")  # noqa: SIM115
        self.stdout = open(answered[0], encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def communicate(self) -> None:
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self.wait()


def _allow_what_is_inherited() -> None:
    """A worker's limit of memory is for an interpreter that has just started; its fork holds all that was preloaded."""
    from distillctl.runtimes import confined

    limit, inherited = confined.limit, costs.data_bytes()

    def allowing(data_bytes: int | None = None, seconds: float | None = None) -> None:
        limit(None if data_bytes is None else data_bytes + inherited, seconds)

    confined.limit = allowing


def _command(args: tuple[Any, ...], prepare: Callable[[], None]) -> None:
    from distillctl import cli
    from distillctl.runtimes import process

    class Forking:
        PIPE, Popen = subprocess.PIPE, ForkedWorker

    process.subprocess = Forking  # type: ignore[assignment, attr-defined]
    sys.argv = ["distillctl", *map(str, args)]
    prepare()
    cli.main()


def _become(*descriptors: int) -> None:
    """stdin, stdout and stderr, Python's too."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _exit(body: Callable[[], Any], finish: Callable[[], None] = lambda: None) -> None:
    """The end of a fork: never back into its parent's code."""
    code = 1
    try:
        body()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        finish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(path.parent.name)
