"""What a stranger's bytes may cost: bounds that only something without bounds exceeds, on a busy machine too."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 60.0


@contextmanager
def bounded(memory: int | None = None, seconds: float = SECONDS) -> Iterator[None]:
    """Assert that the block takes less than ``seconds``, and the peak of memory grows by less than ``memory`` bytes."""
    began, before = time.monotonic(), _peak_bytes()
    yield
    assert time.monotonic() - began < seconds
    if memory is not None:
        assert _peak_bytes() - before < memory


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def data_bytes() -> int:
    """What RLIMIT_DATA counts so far."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
