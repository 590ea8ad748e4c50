"""What takes long to make, made once in a test run: all workers of pytest-xdist share it, and only read it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

_root: Path | None = None


def use(factory: pytest.TempPathFactory, is_worker: bool) -> None:
    """Keep shared folders in the base temporary folder of the whole run; a worker's own is a folder in it."""
    global _root
    base = factory.getbasetemp()
    _root = (base.parent if is_worker else base) / "shared"
    _root.mkdir(exist_ok=True)


def folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name``. Whoever asks first fills it with ``make``, and the others wait.

    ``make`` gets the empty folder where it stays, so that paths within it may be written down.
    """
    assert _root is not None, "the conftest has not called use()"
    found, is_whole = _root / name, _root / f"{name}.whole"
    with (_root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole.exists():
            shutil.rmtree(found, ignore_errors=True)  # of one that failed
            found.mkdir()
            make(found)
            is_whole.touch()
    return found
