"""Write and unpack the .zip. Its bytes depend only on the files, so the same run gives the same archive.

Sorted names, one fixed time, nothing compressed: weights hardly are, and what is stored cannot blow up when it is read.
"""

from __future__ import annotations

import errno
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from distillctl.errors import DataError, GateFailed

_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_CHUNK = 1 << 20
_MAX_FILES = 10_000
_MAX_NAME = 255
"""Longest file name in bytes that file systems accept."""
_MAX_FOLDERS = 8


def files(folder: Path) -> Iterator[str]:
    """Names of all regular files below ``folder``, sorted, with `/` between folders. GateFailed on a link, and on
    anything else that is neither file nor folder."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield name
        elif not stat.S_ISDIR(mode):
            raise GateFailed(f"{name} is a link or a device, not a file", where=str(folder))


def write(folder: Path, target: Path) -> None:
    """Write all files of ``folder`` to the archive ``target``."""
    with target.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in files(folder):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = _UNIX, _MODE << 16
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(entry, "w") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)


def unpack(path: Path, folder: Path) -> None:
    """An archive's files into ``folder``, once its table of contents has been looked at: nothing is written for one
    that names a path outside, a link, a name twice, or more bytes than the archive has.

    DataError where ``path`` is no archive; GateFailed where it is one that `write` has not made, or damaged.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check(entries, size, path)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one is of a place before the beginning
            raise
        if path.suffix != ".zip" and not _begins_like_one(path):
            raise DataError("neither a folder nor a .zip", where=str(path)) from None
        raise GateFailed(f"the archive is damaged: {error}", where=str(path)) from None


def check_name(name: str) -> str | None:
    """Return what is wrong with a file name in a bundle, or None."""
    parts = name.split("/")
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return "a name that is too long"
    if len(parts) > _MAX_FOLDERS:
        return "a name of too many folders"
    if any(part in ("", ".", "..") for part in parts):
        return "an absolute path, or one that leaves the bundle"
    if "\\" in name or ":" in name or "\0" in name or PurePosixPath(name).is_absolute():
        return "a name that is a path on some systems"
    return None


def _check(entries: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > _MAX_FILES:
        raise GateFailed(f"{len(names):,} files are listed, a bundle has a few", where=str(path))
    files = {PurePosixPath(name) for name in names}
    for entry in entries:
        # What zipfile cuts or replaces in a name is looked at too.
        for name in (entry.filename, entry.orig_filename):
            if problem := check_name(name):
                raise GateFailed(f"{name!r}: {problem}", where=str(path))
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise GateFailed(f"{entry.filename} is a link or a device, not a file", where=str(path))
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise GateFailed(f"{entry.filename} is compressed; a bundle's files are stored", where=str(path))
        if set(PurePosixPath(entry.filename).parents) & files:
            raise GateFailed(f"{entry.filename} lies in a file", where=str(path))
    once: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in once:
            raise GateFailed(f"{name} is listed twice, or is {once[key]} on some systems", where=str(path))
        once[key] = name
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise GateFailed(f"{total:,} bytes are listed in an archive of {size:,}", where=str(path))


def _begins_like_one(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
