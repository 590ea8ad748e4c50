"""Write and unpack the .zip. Its bytes depend only on the files, so the same run gives the same archive.

Names are sorted, the time is fixed, and nothing is compressed: weights hardly shrink, and stored files cannot blow up
when they are read.
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
    """Yield the names of all regular files below ``folder``, sorted, with `/` between folders.

    Raise GateFailed for links and special files.
    """
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
    """Unpack an archive into ``folder`` after checking its table of contents.

    Nothing is written if it names a path outside, a link, a name twice, or more bytes than the archive has. Raises
    DataError if ``path`` is not an archive, GateFailed if it is damaged or `write` did not make it.
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
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a seek before the beginning
            raise
        if path.suffix != ".zip" and not _has_zip_header(path):
            raise DataError("it is neither a folder nor a .zip", where=str(path)) from None
        raise GateFailed(f"the archive is damaged: {error}", where=str(path)) from None


def check_name(name: str) -> str | None:
    """Return what is wrong with a file name in a bundle, or None."""
    parts = name.split("/")
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return "a name that is too long"
    if len(parts) > _MAX_FOLDERS:
        return "a name with too many folders"
    if any(part in ("", ".", "..") for part in parts):
        return "an absolute path, or one that leaves the bundle"
    if "\\" in name or ":" in name or "\0" in name or PurePosixPath(name).is_absolute():
        return "a name that is a path on some systems"
    return None


def _check(entries: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > _MAX_FILES:
        raise GateFailed(f"it lists {len(names):,} files, and a bundle has about twenty", where=str(path))
    files = {PurePosixPath(name) for name in names}
    for entry in entries:
        # zipfile cuts and replaces parts of names: check both forms.
        for name in (entry.filename, entry.orig_filename):
            if problem := check_name(name):
                raise GateFailed(f"{name!r}: {problem}", where=str(path))
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise GateFailed(f"{entry.filename} is a link or a device, not a file", where=str(path))
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise GateFailed(f"{entry.filename} is compressed; a bundle's files are stored", where=str(path))
        if set(PurePosixPath(entry.filename).parents) & files:
            raise GateFailed(f"{entry.filename} lies in a file", where=str(path))
    by_key: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in by_key:
            raise GateFailed(f"{name} is listed twice, or equals {by_key[key]} on some systems", where=str(path))
        by_key[key] = name
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise GateFailed(f"it lists {total:,} bytes, and the archive has only {size:,}", where=str(path))


def _has_zip_header(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
