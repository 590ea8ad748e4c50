"""Cache the SHA-256 of large files that many commands need: models, and the folders of the user's cache.

The user's cache keeps each hash with the file's size, times, inode and device. An unchanged file is read once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError
from distillctl.run_dir import checksums
from distillctl.run_dir.atomic_io import write_text
from distillctl.run_dir.fingerprints import digest, file_digest
from distillctl.untrusted import limits

LEAST_BYTES = 1 << 20
"""Size from which a file's hash is kept. Reading a smaller file is as fast as looking it up."""
SETTLED = 2.0
"""Age in seconds of a file's last change from which its hash is kept. Two changes within one step of the file system's
clock leave the same times."""
_MEMORY_BYTES = 4 << 20
_MOST_FILES = 1000
_ENTRY = re.compile(r"[0-9a-f]{64}")


def root() -> Path:
    """Return this program's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillctl"


def tree_digest(path: Path) -> str:
    """Return the result of `fingerprints.tree_digest` without reading unchanged files again."""
    if path.is_file():
        return file_digests([path])[path]
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    digests = file_digests(files)
    return digest({str(file.relative_to(path)): digests[file] for file in files})


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return each file's SHA-256 (hex). Raise OSError if one cannot be read or is not a regular file."""
    memory = root() / "hashes.json"
    known = _read(memory)
    digests: dict[Path, str] = {}
    fresh: dict[str, list[Any]] = {}
    for path in paths:
        state = _state(path)
        kept = known.get(str(path), [])
        digests[path] = kept[-1] if kept[:-1] == state else file_digest(path)
        if kept[:-1] != state and _may_be_kept(path, state):
            fresh[str(path)] = [*state, digests[path]]
    if fresh:
        others = {path: entry for path, entry in known.items() if path not in fresh}
        last = dict(list((others | fresh).items())[-_MOST_FILES:])
        with contextlib.suppress(UnavailableError):  # without a cache that can be written, files are read again
            write_text(memory, checksums.put(json.dumps({"files": last})))
    return digests


def _state(path: Path) -> list[int]:
    """Return facts that change with a file's bytes, among them the ctime, which no program can set."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]


def _may_be_kept(path: Path, before: list[int]) -> bool:
    """Return whether the file is large, was not changed while it was read, and has not just been changed."""
    size, _, changed, *_ = before
    return size >= LEAST_BYTES and _state(path) == before and time.time() - changed / 1e9 >= SETTLED


def _read(memory: Path) -> dict[str, list[Any]]:
    """Return file → its state and hash; empty if the cache cannot be read or is damaged."""
    try:
        document, checksum = checksums.read(limits.read_bytes(memory, _MEMORY_BYTES))
        files = document["files"] if checksum else {}
        return {path: list(entry) for path, entry in files.items() if len(entry) == 6 and _ENTRY.fullmatch(entry[-1])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
