"""The command line in a process of its own that gets a signal as soon as something is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests import project


def send_when(
    seen: Callable[[], Any], *args: Any, number: int = signal.SIGKILL, times: int = 1, group: bool = False
) -> subprocess.CompletedProcess[str]:
    """Start the command, and send it a signal (``times``) as soon as ``seen`` says so; it must not have ended by itself
    before. group: to all of its process group, as a terminal does."""
    process = subprocess.Popen(
        project.command(*args),
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    for _ in range(times):
        (os.killpg if group else os.kill)(process.pid, number)
        time.sleep(0.001)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
