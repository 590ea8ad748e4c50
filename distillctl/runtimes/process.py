"""Start a `worker` process, send it jobs, and always end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError

COMMAND = (sys.executable, "-P", "-m", "distillctl.runtimes.confined")  # -P: no module of the current folder
MODULE = "distillctl.runtimes.worker"
LOAD_SECONDS = 1800.0
QUERY_SECONDS = 600.0
"""A worker hangs if loading or one query takes longer than this."""

_SHOWN = 300

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerFailed(UnavailableError):
    """A worker died or hangs. reason: one line."""

    def __init__(self, name: str, reason: str, stderr: Sequence[str]) -> None:
        """Describe the failure. stderr: the last lines that the worker wrote to it."""
        super().__init__("\n".join([f"the process that measures it {reason}", *stderr]), where=name)
        last = stderr[-1].partition(": ")[2] if stderr else ""  # a traceback's last line, without the exception's name
        self.reason = last.strip()[:_SHOWN] or f"its process {reason}"


class WorkerProcess:
    """A fresh process that holds one model. Use it in a ``with`` block, which ends the process.

    The process also ends when this one dies, however that happens (`confined`).
    """

    def __init__(
        self,
        name: str,
        job: dict[str, object],
        *,
        load_seconds: float = LOAD_SECONDS,
        module: str = MODULE,
        env: Mapping[str, str] = {},
        wait: bool = True,
    ) -> None:
        """Start the process, and wait until its model is ready. Raise UnavailableError if it dies or hangs.

        module: the worker's module. env: variables to add. wait: False if several processes start at the same time;
        call `load` later.
        """
        self.name = name
        self.loaded: dict[str, Any] = {}
        self._load_seconds = load_seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        threads = dict.fromkeys(THREAD_VARIABLES, str(job["threads"]))
        self._process = subprocess.Popen(
            (*COMMAND, str(os.getpid()), module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", **env},
            process_group=0,  # Ctrl-C is for this process, which ends its workers
            encoding="utf-8",
        )
        try:
            self._send(job)
            if wait:
                self.load()
        except BaseException:
            self.close()
            raise

    def load(self) -> None:
        """Wait until the model is ready. ``loaded`` then holds the cost of loading."""
        self.loaded = self._answer(self._load_seconds)

    def run(self, start: int, count: int, seconds: float | None = None) -> dict[str, Any]:
        """Run up to ``count`` texts from ``start`` until ``seconds`` are spent. Return the worker's answer (see
        `worker`)."""
        return self.ask({"start": start, "count": count, "seconds": seconds}, QUERY_SECONDS * count)

    def pin(self, cpus: Iterable[int]) -> None:
        """Pin all threads of the worker to these CPUs, if the system can (Linux)."""
        for task in Path(f"/proc/{self._process.pid}/task").glob("*"):
            os.sched_setaffinity(int(task.name), cpus)

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, message: dict[str, object], seconds: float) -> dict[str, Any]:
        """Send one line, and return the answer within ``seconds``. Raise UnavailableError if the worker dies or
        hangs."""
        self._send(message)
        return self._answer(seconds)

    def _send(self, message: dict[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: `_answer` says of what
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True  # a signal within `start` would leave it running, and the command must still end
        try:
            timer.start()
            answer = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            raise self._failure(f"gave no answer in {seconds:g} s" if late.is_set() else None)
        message: dict[str, Any] = json.loads(answer)
        return message

    def _failure(self, reason: str | None) -> WorkerFailed:
        code = self._process.wait()
        if reason is None and code == -signal.SIGKILL:
            reason = "was killed (out of memory?)"
        elif reason is None and code == -signal.SIGXCPU:
            reason = "exceeded its limit of processor time"
        elif reason is None:
            reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._stderr.seek(0)
        stderr = self._stderr.read().decode(errors="replace").strip().splitlines()[-8:]
        return WorkerFailed(self.name, reason, stderr)
