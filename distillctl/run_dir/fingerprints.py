"""Compute SHA-256 fingerprints of JSON values, files and folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from distillctl.untrusted import regular_files


def digest(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes. Raise OSError if it cannot be read or is not a regular file."""
    with regular_files.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        return file_digest(path)
    return digest({str(p.relative_to(path)): file_digest(p) for p in sorted(path.rglob("*")) if p.is_file()})
