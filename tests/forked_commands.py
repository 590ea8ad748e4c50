"""The command line in forks of a process that has imported what commands import: a command then costs no start.

That process is new, computes nothing itself, and serves one test process.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 900  # on a machine with other things to do
_READ_AT_START = (
    *("PYTHON", "LANG", "LC_", "OMP_", "MKL_", "OPENBLAS_"),
    *("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_MODULES_CACHE"),
)
"""How the variables begin that an interpreter reads when it starts, or a library when it is imported."""
_MORE = (
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "torch.onnx._internal.fx.passes",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
"""What stages import of libraries only while they run."""


@dataclass(frozen=True)
class _Request:
    args: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    prepare: Callable[[], None] | None


def takes(environment: Mapping[str, str]) -> bool:
    """Return whether a fork behaves as a new process with this environment does."""
    return _read_at_start(environment) == _server()[1]


def run(
    args: tuple[str, ...], environment: Mapping[str, str], prepare: Callable[[], None] | None
) -> subprocess.CompletedProcess[str]:
    """Run ``distillctl *args`` to its end. prepare: called in the fork before the command starts; it can be pickled."""
    server, _ = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    pickle.dump(_Request(args, dict(environment), os.getcwd(), prepare), server.stdin)
    server.stdin.flush()
    code, out, err = pickle.load(server.stdout)
    return subprocess.CompletedProcess(args, code, out, err)


@functools.cache
def _server() -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start the process, which ends when its stdin does and is no child of this one, whose children some tests count.

    Also return what it read of the environment when it started.
    """
    from tests import project

    environment = project.environment()
    command = [sys.executable, "-m", __name__]
    root = Path(__file__).parents[1]  # the first test that asks may be in a folder from which `tests` is not found
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=root)
    if process.wait():  # else it went on in a fork
        raise RuntimeError(f"{' '.join(command)} did not start: exit {process.returncode}")
    return process, _read_at_start(environment)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def _serve() -> None:
    if os.fork():
        os._exit(0)
    from tests.durability import forks

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an import prints is no answer
    forks.preload(*_MORE)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        ended = forks.run(*request.args, prepare=functools.partial(_prepare, request))
        pickle.dump((ended.code, ended.out, ended.err), answers)
        answers.flush()


def _prepare(request: _Request) -> None:
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    signal.alarm(SECONDS)
    if request.prepare is not None:
        request.prepare()


if __name__ == "__main__":
    _serve()
