"""Folders in the user's cache that take long to make. Each records the hashes of its files, and every use checks them.

A file's hash is remembered with its path, size, times and inode, so that a file that nobody touched is not read again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distillctl import console
from distillctl.errors import UnavailableError
from distillctl.run_dir import checksums
from distillctl.run_dir.fingerprints import file_digest
from distillctl.run_dir.workspace import replacing_folder, write_text
from distillctl.untrusted import limits, regular_files

RECORD = ".files.json"
"""In each folder: name → SHA-256 of all other files."""
_BYTES = 4 << 20
_REMEMBERED = 1000
"""Files, the last ones that were hashed."""
_KINDS = ("gguf", "genai")
_warned: set[Path] = set()


def place(kind: str, key: str) -> Path:
    """Where a folder belongs. kind: what it is made of, one of the cache's own folders; key: of its content."""
    assert kind in _KINDS
    return _root() / kind / key


def is_whole(folder: Path) -> bool:
    """Return whether the folder holds exactly the files of its record. If not, warn; the caller makes it again."""
    if not folder.is_dir():
        return False
    try:
        problem = _problem(folder)
    except (OSError, ValueError) as error:
        problem = f"its record cannot be read ({error})"
    if problem and folder not in _warned:
        _warned.add(folder)
        console.warn(f"{folder} is not as it was made: {problem}; it will be made again")
    return problem is None


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder; when the block ends well, it takes the folder's place, with the record of its files."""
    with replacing_folder(folder) as staged:
        yield staged
        names = {path.relative_to(staged).as_posix(): file_digest(path) for path in _files(staged)}
        (staged / RECORD).write_text(checksums.put(json.dumps({"files": names})), encoding="utf-8")


def _problem(folder: Path) -> str | None:
    if not (folder / RECORD).exists():
        return "it has no record of its files"
    document, checksum = checksums.read(limits.read_bytes(folder / RECORD, _BYTES))
    recorded = document.get("files")
    if checksum is None or not isinstance(recorded, dict):
        raise ValueError("it has no valid checksum")
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if unlike := sorted(there.keys() ^ recorded.keys()):
        return f"{unlike[0]} is {'not recorded' if unlike[0] in there else 'gone'}"
    found = _digests(there.values())
    return next((f"{name} has changed" for name, path in there.items() if found[path] != recorded[name]), None)


def _files(folder: Path) -> list[Path]:
    """All but the record, in order. OSError where something is no regular file."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        state = path.lstat()
        if path.is_symlink() or not path.is_file():
            raise regular_files.NotRegular(state.st_mode, path)
    return [path for path in found if path != folder / RECORD]


# ── remembered hashes ────────────────────────────────────────────────────────────────────────────


def _digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file; those that are as they were when they were last hashed are not read."""
    memory = _root() / "hashes.json"
    known = _remembered(memory)
    found: dict[Path, str] = {}
    fresh: dict[str, list[Any]] = {}
    changed = False
    for path in paths:
        state = _state(path)
        before = known.pop(str(path), None)
        found[path] = before[-1] if before and before[:-1] == state else file_digest(path)
        fresh[str(path)] = [*(state if _state(path) == state else [0] * len(state)), found[path]]
        changed |= before != fresh[str(path)]
    if changed:
        kept = dict(list((known | fresh).items())[-_REMEMBERED:])
        with contextlib.suppress(UnavailableError):  # a cache that cannot be written is none
            write_text(memory, checksums.put(json.dumps({"files": kept})))
    return found


def _state(path: Path) -> list[int]:
    """What changes with a file's bytes. The time of its last change of state nobody can set."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]


def _remembered(memory: Path) -> dict[str, list[Any]]:
    try:
        document, checksum = checksums.read(limits.read_bytes(memory, _BYTES))
        files = document["files"] if checksum else {}
        return {path: list(entry) for path, entry in files.items() if len(entry) == 6 and isinstance(entry[-1], str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillctl"
