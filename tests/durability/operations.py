"""The file operations that Python code makes below one folder, seen and counted: where a kill, a fault or a loss of
power can be put between any two of them. What libraries write in C++ or Rust is seen when it is fsynced and renamed."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "fsync")


@dataclass(frozen=True)
class Operation:
    """name: of `NAMES`; "open", for writing; "tmpfile", of a file without a name in a folder; "mkdir again", of a
    folder that is there. path: what is changed; source: what is renamed to it."""

    name: str
    path: Path
    source: Path | None = None

    @property
    def in_making(self) -> bool:
        """Nobody may take this for whole: it has a temporary name."""
        return any(part.startswith(".") and part.endswith(".tmp") for part in self.path.parts)


Seen = Callable[[Operation], None]


def install(root: Path, before: Seen, after: Seen = lambda one: None) -> None:
    """From now on, in this process. What ``before`` raises is what the operation raises."""
    root = root.resolve()

    def watched(name: str, original: Callable[..., Any], where: Callable[..., Operation]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            one = where(*args, **kwargs)
            if not one.path.is_relative_to(root):
                return original(*args, **kwargs)
            before(one)
            result = original(*args, **kwargs)
            after(one)
            return result

        return call

    for name in NAMES:
        setattr(os, name, watched(name, getattr(os, name), _where(name)))
    original = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return original(file, mode, *args, **kwargs)
        return writing(file, mode, *args, **kwargs)

    writing = watched("open", original, _opened)
    builtins.open = io.open = opened  # type: ignore[assignment]


def _opened(file: Any, *_: Any, **__: Any) -> Operation:
    return Operation("tmpfile" if os.path.isdir(file) else "open", _absolute(file))


def _where(name: str) -> Callable[..., Operation]:
    def of(first: Any, second: Any = None, *_: Any, dir_fd: int | None = None, **__: Any) -> Operation:
        if name == "fsync":
            descriptor = first if isinstance(first, int) else first.fileno()
            return Operation(name, Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        if name in ("rename", "replace"):
            return Operation("replace", _absolute(second), _absolute(first))
        path = _absolute(first, dir_fd)
        if name == "mkdir" and path.is_dir():
            return Operation("mkdir again", path)
        return Operation("unlink" if name == "remove" else name, path)

    return of


def _absolute(path: Any, dir_fd: int | None = None) -> Path:
    base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return Path(os.path.normpath(os.path.join(base, os.fsdecode(path))))
