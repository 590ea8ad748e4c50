"""Files that nothing may touch: a tree compared before and after, and every opening of a secret told by the kernel."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_OPEN, _MODIFY, _ACCESS, _CREATE, _DELETE, _MOVED = 0x20, 0x2, 0x1, 0x100, 0x200, 0xC0
_EVENTS = _OPEN | _MODIFY | _ACCESS | _CREATE | _DELETE | _MOVED
_IS_DIRECTORY = 0x40000000
_HEAD = struct.Struct("iIII")


class Secrets:
    """Folders of files that nothing may read or change, native code included (inotify(7))."""

    def __init__(self, folders: list[Path]) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {_libc.inotify_add_watch(self._descriptor, os.fsencode(f), _EVENTS): f for f in folders}
        if self._descriptor < 0 or -1 in self._folders:
            raise OSError(ctypes.get_errno(), "inotify")

    def touched(self) -> list[str]:
        """Files that were opened, made or removed since the last call."""
        found = []
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return sorted(set(found))
            at = 0
            while at < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, at)
                name = data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0").decode()
                at += _HEAD.size + length
                if not mask & _IS_DIRECTORY:
                    found.append(str(self._folders[watch] / name))

    def close(self) -> None:
        os.close(self._descriptor)


def tree(folder: Path, but: list[Path]) -> dict[str, tuple[int, ...]]:
    """Everything below ``folder`` but what lies in ``but``: path → mode, size, time of change, number of links."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) not in but]
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            state = os.lstat(path)
            times = () if name in folders else (state.st_size, state.st_mtime_ns, state.st_nlink)
            found[path] = (state.st_mode, *times)
    return found
