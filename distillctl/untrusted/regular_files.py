"""Open only regular files. A FIFO, a socket or a device is refused: opening or reading one could take for ever."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


class NotRegular(OSError):
    """The path does not name a regular file."""

    def __init__(self, mode: int, path: Path) -> None:
        super().__init__(errno.EINVAL, f"it is {kind(mode)}, not a regular file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def kind(mode: int) -> str:
    """Return the kind of file that a mode of `os.stat` describes, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file" if stat.S_ISREG(mode) else "of an unknown kind")


def check_regular(path: Path) -> None:
    """Raise NotRegular if ``path`` exists and is neither a regular file nor a folder. Follow links."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotRegular(mode, path)


def check_folder(folder: Path) -> None:
    """Raise NotRegular for anything below a folder that is neither a regular file nor a folder. Follow file links."""
    for root, _, names in os.walk(folder):
        for name in names:
            check_regular(Path(root, name))


def opened(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raise OSError if it cannot be opened, and NotRegular if it is no regular file."""
    before = os.stat(path).st_mode
    if not stat.S_ISREG(before):  # merely opening a device can have an effect
        raise NotRegular(before, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(mode, path)
    return os.fdopen(descriptor, "rb")


def opened_in_place(path: str | Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open a file to change it in place, and return its descriptor.

    Raise OSError (ELOOP) if the path is a link, and NotRegular if it is no regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(mode, Path(path))
    return descriptor
