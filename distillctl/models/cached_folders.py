"""Keep folders that take long to make in the user's cache. Each records its files' hashes, which every use checks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from distillctl import console
from distillctl.models import hash_cache
from distillctl.run_dir import checksums
from distillctl.run_dir.fingerprints import file_digest
from distillctl.run_dir.workspace import replacing_folder
from distillctl.untrusted import limits, regular_files

RECORD = ".files.json"
"""File in each folder: name → SHA-256 of all other files."""
_BYTES = 4 << 20
_KINDS = ("gguf", "genai")
_warned: set[Path] = set()


def place(kind: str, key: str) -> Path:
    """Return where a folder belongs. kind: its parent folder in the cache. key: hash of its content."""
    assert kind in _KINDS
    return hash_cache.root() / kind / key


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
        console.warn(f"{folder} was changed: {problem}; it will be made again")
    return problem is None


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` if the block succeeds, with the record of its files."""
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
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if different := sorted(present.keys() ^ recorded.keys()):
        return f"{different[0]} is {'not recorded' if different[0] in present else 'gone'}"
    digests = hash_cache.file_digests(present.values())
    return next((f"{name} has changed" for name, path in present.items() if digests[path] != recorded[name]), None)


def _files(folder: Path) -> list[Path]:
    """Return all files but the record, in order. Raise OSError if one is no regular file."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in files:
        state = path.lstat()
        if path.is_symlink() or not path.is_file():
            raise regular_files.NotRegular(state.st_mode, path)
    return [path for path in files if path != folder / RECORD]
