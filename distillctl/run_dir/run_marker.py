"""Recognise a run directory by its marker, whose token is part of the names of its temporary files.

Nothing is removed only because of its name. A folder without a marker also counts if it has manifests or a
recipe.lock.yaml: older versions wrote no marker, and a copy may lack hidden files.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from distillctl.errors import UnavailableError
from distillctl.run_dir import checksums, manifest
from distillctl.run_dir.atomic_io import is_folder, move, set_aside_name, sync
from distillctl.run_dir.manifest import MANIFEST
from distillctl.untrusted import limits, regular_files

MARKER = ".distillctl-run.json"
LOCK = ".lock"
RECIPE = "recipe.lock.yaml"
FOLDERS = ("collect", "train", "export", "quantize", "bench", "devices", "report", "bundle")
"""The folders of a run directory. Anything else in it belongs to the user."""
PLACES = (MARKER, LOCK, RECIPE, *FOLDERS, "failed", "bundle.zip")
"""Every name that is written in a run directory."""
_IN_MAKING = f"{MARKER}.tmp"
_ABOUT = "temporary files of this run directory carry the token in their names; see `distillctl guide run-directory`"
_UNFINISHED = {
    "collect": {"shards", "views.parquet", "served", "fields.parquet"},
    "train": {"model", "checkpoints", "metrics.jsonl", "eval.parquet", "controls.parquet"},
}
"""The files that a stage's folder may hold before its manifest is written."""
_SECTIONS = ("name", "seed", "task", "data", "contexts", "teacher", "student", "shard_rows", "train", "export")
"""Keys that recipe.lock.yaml has in every version."""


def token(root: Path) -> str:
    """Return the token from the run directory's marker; write a new marker if there is no whole one.

    The caller holds the lock.
    """
    known = _read(root)
    if known is not None:
        return known
    made = secrets.token_hex(8)
    temporary = root / _IN_MAKING
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(checksums.put(json.dumps({"about": _ABOUT, "token": made})))
        sync(temporary)
        move(temporary, root / MARKER)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for stage in FOLDERS:  # folders that an older version had set aside when it was killed
        if _has_manifest(_older_aside(root, stage), stage) and not _has_manifest(root / stage, stage):
            move(_older_aside(root, stage), set_aside_name(root / stage, made))
    return made


def _older_aside(root: Path, stage: str) -> Path:
    return set_aside_name(root / stage, "")


def _read(root: Path) -> str | None:
    try:
        if (root / MARKER).is_symlink():
            return None
        document, checksum = checksums.read(limits.read_bytes(root / MARKER, 4096))
    except (OSError, ValueError):
        return None
    token = document.get("token")
    is_whole = checksum is not None and isinstance(token, str) and re.fullmatch("[0-9a-f]{16}", token)
    return str(token) if is_whole else None


def refuse_others(root: Path) -> None:
    """Raise UnavailableError if the folder is not empty and is not a run directory."""
    names = set(os.listdir(root))
    if names <= {LOCK, _IN_MAKING} and _is_lock(root / LOCK):
        return
    if _read(root) is not None:
        return
    whole = {name for name in FOLDERS if any(_has_manifest(f, name) for f in (root / name, _older_aside(root, name)))}
    others = [name for name in FOLDERS if name in names and name not in whole and not _is_unfinished(root, name)]
    if not whole and not _is_recipe(root / RECIPE):
        others = sorted(names)
    if others:
        raise UnavailableError(
            f"the folder is not empty and is not a run directory (it holds {others[0]})",
            where=str(root),
            next="choose a new or empty folder with --run-dir",
        )


def _is_lock(path: Path) -> bool:
    """Tell whether the file is missing, or says only who holds the lock."""
    try:
        content = limits.read_bytes(path, 300)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return not content or content.startswith(b"process ")


def _has_manifest(folder: Path, stage: str) -> bool:
    try:
        return is_folder(folder) and bool(manifest.read(folder / MANIFEST, stage))
    except (OSError, ValueError):
        return False


def _is_unfinished(root: Path, stage: str) -> bool:
    """Tell whether a folder without a manifest may belong to a stage that has not finished."""
    folder = root / stage
    if not is_folder(folder):
        return folder.is_symlink()  # `refuse_links` says why, once the run directory is locked
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    return MANIFEST in names or names <= _UNFINISHED.get(stage, set())


def _is_recipe(path: Path) -> bool:
    try:
        text = limits.read_bytes(path, 1 << 20).decode()
    except (OSError, ValueError):
        return False
    return all(re.search(rf"^{key}:", text, re.MULTILINE) for key in _SECTIONS)


def refuse_links(root: Path) -> None:
    """Raise UnavailableError if a place that is written is a link or a special file, which could lead outside."""
    for path, mode in _entries(root):
        if not stat.S_ISREG(mode):
            kind = f"a link to {os.readlink(path)}" if stat.S_ISLNK(mode) else regular_files.kind(mode)
            raise UnavailableError(
                f"it is {kind}; a run directory holds only folders and regular files of its own",
                where=str(path),
                next=f"remove it, or replace it with a copy of its target: rm {path}",
            )


def _entries(root: Path) -> Iterator[tuple[str, int]]:
    """Yield path and mode of everything but folders in the places that are written."""
    for name in PLACES:
        path = root / name
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode):
            yield from _below(str(path))
        else:
            yield str(path), mode


def _below(folder: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            elif entry.is_file(follow_symlinks=False):
                continue  # the usual case, without another system call
            else:
                yield entry.path, entry.stat(follow_symlinks=False).st_mode
