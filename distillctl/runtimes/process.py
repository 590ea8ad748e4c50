"""The parent's end of a `worker`: start it, ask it, and never leave it behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distillctl.errors import Unavailable

COMMAND = (sys.executable, "-P", "-m")  # -P: no module of the current folder
MODULE = "distillctl.runtimes.worker"
LOAD_SECONDS = 1800.0
QUERY_SECONDS = 600.0
"""A worker that takes longer than this to load, or for one query, hangs."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerProcess:
    """A fresh process that holds one model. Use it in a ``with``: its end is the process's end.

    The process also ends when this one dies, however that happens: its stdin closes.
    """

    def __init__(
        self,
        name: str,
        job: dict[str, Any],
        *,
        load_seconds: float = LOAD_SECONDS,
        module: str = MODULE,
        env: Mapping[str, str] = {},
    ) -> None:
        """Starts the process and waits until its model is ready. Unavailable when it dies or hangs.

        module: a worker with its ways. env: of the process, besides this one's.
        """
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        threads = dict.fromkeys(THREAD_VARIABLES, str(job["threads"]))
        self._process = subprocess.Popen(
            (*COMMAND, module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", **env},
            process_group=0,  # Ctrl-C is for this process, which ends its workers
            encoding="utf-8",
        )
        try:
            self.loaded = self.ask(job, load_seconds)
        except BaseException:
            self.close()
            raise

    def run(self, start: int, count: int, seconds: float | None = None) -> dict[str, Any]:
        """Run up to ``count`` texts from ``start`` on, until ``seconds`` are spent; see `worker` for the answer."""
        return self.ask({"start": start, "count": count, "seconds": seconds}, QUERY_SECONDS * count)

    def pin(self, cpus: Iterable[int]) -> None:
        """Keep all threads it has on these CPUs, where the system can (Linux). Loading takes any."""
        for task in Path(f"/proc/{self._process.pid}/task").glob("*"):
            os.sched_setaffinity(int(task.name), cpus)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the worker answers to one line, within ``seconds``. Unavailable when it dies or hangs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True  # a signal within `start` leaves nobody to cancel it; the command must end all the same
        try:
            timer.start()
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            raise self._failure(f"gave no answer in {seconds:g} s" if late.is_set() else None)
        found: dict[str, Any] = json.loads(answer)
        return found

    def _failure(self, reason: str | None) -> Unavailable:
        code = self._process.wait()
        if reason is None and code == -signal.SIGKILL:
            reason = "was killed (out of memory?)"
        elif reason is None:
            reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()[-8:]
        return Unavailable("\n".join([f"the process that measures it {reason}", *said]), where=self.name)
