"""Write files durably: to a temporary name, then fsync, then rename. All files of a run directory are written like
that.

While a run directory is held (`owned_by`), temporary names carry its token, which tells the files that a killed process
left behind from the user's.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distillctl.errors import UnavailableError
from distillctl.run_dir.manifest import MANIFEST
from distillctl.untrusted import regular_files

_owner = ""


@contextlib.contextmanager
def owned_by(token: str) -> Iterator[None]:
    """Put ``token`` into all temporary names that this process makes within the block."""
    global _owner
    before, _owner = _owner, token
    try:
        yield
    finally:
        _owner = before


def temporary_name(path: Path) -> Path:
    """Return an unused, unpredictable name in the folder of ``path``."""
    return path.with_name(f"{temporary_prefix(path)}{secrets.token_hex(4)}.tmp")


def set_aside_name(path: Path, token: str | None = None) -> Path:
    """Return the name under which a folder is kept while a new one replaces it. token: default: `owned_by`'s."""
    token = _owner if token is None else token
    return path.with_name(f".{path.name}.{token}.aside" if token else f".{path.name}.aside")


def is_temporary(name: str, token: str) -> bool:
    """Tell whether this is the temporary name of an unfinished file of the run directory with this token."""
    return re.fullmatch(rf"\..+\.{token}-\w+\.tmp", name) is not None


def was_set_aside(name: str, token: str) -> str | None:
    """Return the name that a folder had before it was set aside, or None if this is no such name."""
    match = re.fullmatch(rf"\.(.+)\.{token}\.aside", name)
    return match[1] if match else None


def temporary_prefix(path: Path) -> str:
    """Return the prefix of a temporary name, for `tempfile`; the suffix is ``.tmp``."""
    return f".{path.name}.{_owner or os.getpid()}-"


# ── moves ────────────────────────────────────────────────────────────────────────────────────────


def is_folder(path: Path) -> bool:
    """Tell whether the path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def sync(path: Path) -> None:
    """Call fsync on a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents durably: fsync the parent of each new folder, which holds its name."""
    missing = list(itertools.takewhile(lambda folder: not folder.is_dir(), (path, *path.parents)))
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def move(path: Path, target: Path) -> None:
    """Rename durably within one folder.

    An overlay file system (a Docker layer) refuses with EXDEV to rename a folder of a lower layer. The folder is then
    copied, and removed once the copy is complete.
    """
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV or not is_folder(path):
            raise
        _copy(path, target)
        remove_moved(path)
    sync(target.parent)


def _copy(path: Path, target: Path) -> None:
    """Copy a folder so that the copy appears only when it is complete."""
    temporary = temporary_name(target)
    try:
        shutil.copytree(path, temporary, symlinks=True)
        _sync_below(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


MOVED = ".distillctl-moved"
"""Marks a folder that is being removed because its copy is complete."""


def remove_moved(path: Path) -> None:
    """Remove a folder whose copy is complete, so that after a kill the rest does not pass for complete."""
    mark = path / MOVED
    mark.touch()
    sync(path)
    for item in path.iterdir():
        if item != mark:
            shutil.rmtree(item) if is_folder(item) else item.unlink()
    sync(path)
    mark.unlink()
    path.rmdir()


def _sync_below(folder: Path) -> None:
    for item in [*folder.rglob("*"), folder]:
        sync(item)


# ── writes ───────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` durably if the block succeeds.

    Raise UnavailableError if it cannot be written, or if ``path`` is not a regular file: a device would be lost.
    """
    with writable(path):
        if path.exists() and not path.is_file():
            raise regular_files.NotRegular(path.stat().st_mode, path)
        make_folder(path.parent)
        temporary = temporary_name(path)
        try:
            yield temporary
            sync(temporary)
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` durably if the block succeeds.

    A committed folder of a stage is set aside until the new one is committed.
    """
    with writable(path):
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(path), suffix=".tmp", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            _sync_below(temporary)
            set_aside = set_aside_name(path)
            if path.exists() and set_aside.exists():  # it was set aside before: ``path`` is scratch of this run
                shutil.rmtree(path)
            elif path.exists():
                move(path, set_aside)
            move(temporary, path)
            if not (set_aside / MANIFEST).exists():
                shutil.rmtree(set_aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_to_append(path: str | Path, flags: int = os.O_RDWR | os.O_CREAT | os.O_APPEND) -> int:
    """Open a file to append to, without following a link. A file with several names (hard links) is copied first.

    Serves as the ``opener`` of `open`, and in place of `os.open`.
    """
    path = Path(path)
    descriptor = regular_files.opened_in_place(path, flags)
    if os.fstat(descriptor).st_nlink == 1:
        return descriptor
    os.close(descriptor)
    with replacing(path) as temporary:
        shutil.copyfile(path, temporary, follow_symlinks=False)
    return regular_files.opened_in_place(path, flags)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn a full disk, a file-size limit, or a read-only folder into UnavailableError that names ``path``.

    Libraries wrap the operating system's error in errors of their own, so the text is searched too: safetensors writes
    "os error 28", and torch.save names its writer's source file.
    """
    try:
        yield
    except OSError as error:
        failed_path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        place_is_missing = error.errno in _MISSING_PLACE and failed_path.is_relative_to(path.parent)
        if isinstance(error, regular_files.NotRegular) or error.errno in _WRITE_ERRORS or place_is_missing:
            raise _unwritable(path, error) from error
        raise
    except Exception as error:
        text = str(error)
        marks = [
            *_TORCH_WRITER,
            *(mark for code in _FOUND_IN_TEXT for mark in (f"os error {code})", os.strerror(code))),
        ]
        if any(mark in text for mark in marks):
            raise _unwritable(path, error) from error
        raise


_TORCH_WRITER = ("PytorchStreamWriter failed", "inline_container.cc")
_FOUND_IN_TEXT = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
"""Error numbers that are searched for in the text of libraries' errors."""
_WRITE_ERRORS = (
    *_FOUND_IN_TEXT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ESTALE,
    errno.EXDEV,
    errno.EBUSY,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTEMPTY,
    errno.ENXIO,
    errno.ENODEV,
)
_MISSING_PLACE = (errno.ENOENT, errno.EINVAL)
"""Write errors only if they name the folder that is written: it is gone, or its file system refuses the name."""


def _unwritable(path: Path, error: Exception) -> UnavailableError:
    reason, where, next = str(error), path, "free some space or choose another place with --run-dir"
    if os_error := re.search(r"\(os error (\d+)\)", reason):  # the rest of safetensors' message adds nothing
        reason = os.strerror(int(os_error[1]))
    if isinstance(error, OSError):
        reason = error.strerror or reason
        failed_path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        if not failed_path.is_relative_to(path.parent):  # a scratch file elsewhere
            where, next = failed_path, "free some space there, or set TMPDIR"
    return UnavailableError(
        f"cannot be written: {reason}", where=str(where), next=f"{next}; what was committed is kept"
    )
