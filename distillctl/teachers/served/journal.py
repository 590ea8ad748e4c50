"""Every answer that was paid for, kept the moment it is there: one JSON line each, only ever appended to.

What is in the file is safe from a killed process at once, and from a power cut within a second. A line that was torn
off by either is dropped when the file is opened next, and one that is not as its checksum says is ignored. Answers are
found by what was asked, so a question that changed is asked again, and one that did not is never paid for twice.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from distillctl import checksums, console
from distillctl.teachers.served.protocol import Answer, Choice, Position
from distillctl.workspace import make_folder, writable

SYNC_LINES, SYNC_SECONDS = 64, 1.0
_KEYS = {"key", "used", "ms", "answer"}


class Journal:
    """Answers by key on disk, by their place in memory. One process at a time (the run directory's lock)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used = (0, 0)
        """Tokens read and written by all requests, those included that were paid for and brought no answer."""
        self.milliseconds: list[float] = []
        """How long each answer took, from its request to its last byte."""
        self._places: dict[str, tuple[int, int]] = {}
        with writable(path):
            make_folder(path.parent)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._end = self._read()
            os.ftruncate(self._file, self._end)
        self._unsynced, self._synced = 0, time.monotonic()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """The answer to a question, if it is there."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        return _answer(json.loads(os.pread(self._file, length, start))["answer"])

    def keep(self, key: str, answer: Answer, used: tuple[int, int], milliseconds: float) -> None:
        """An answer, the tokens it took and its time."""
        self._append({"key": key, "used": used, "ms": round(milliseconds, 1), "answer": _plain(answer)})

    def lose(self, key: str, used: tuple[int, int]) -> None:
        """Tokens that were paid for, as far as one knows, and brought no answer."""
        self._append({"key": key, "used": used})

    def close(self) -> None:
        """Make all of it safe."""
        with writable(self.path):
            os.fsync(self._file)
        os.close(self._file)

    def _append(self, entry: dict[str, Any]) -> None:
        line = checksums.put(json.dumps(entry, ensure_ascii=False, separators=(",", ":"))).encode()
        with writable(self.path):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:
                os.ftruncate(self._file, self._end)  # half a line would be taken for the beginning of the next
                raise
            self._unsynced += 1
            if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._unsynced, self._synced = 0, time.monotonic()
        self._count(entry, self._end, len(line))
        self._end += len(line)

    def _read(self) -> int:
        """Index what is there; returns where the last whole line ends. A line that is damaged is asked for again."""
        end = damaged = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry, _ = checksums.read(line, allow_inf_nan=True)
                    if not entry.keys() <= _KEYS:
                        raise ValueError("not a line of this journal")
                    if "answer" in entry:
                        _answer(entry["answer"])
                    self._count(entry, end, len(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    damaged += 1
                end += len(line)
        if damaged:
            console.warn(f"{self.path}: {damaged:,} damaged lines are ignored; what they answered is asked again")
        return end

    def _count(self, entry: dict[str, Any], start: int, length: int) -> None:
        key, (read, written) = str(entry["key"]), entry["used"]
        self.used = self.used[0] + int(read), self.used[1] + int(written)
        if "answer" in entry:
            self.milliseconds.append(float(entry["ms"]))
            self._places[key] = start, length


# ── answers as JSON ──────────────────────────────────────────────────────────────────────────────


def _plain(answer: Answer) -> dict[str, Any]:
    """Bytes, which need not be text, one character each."""
    return {
        "choices": [
            {
                "text": choice.text,
                "cut": choice.cut,
                "tokens": [
                    [p.token.decode("latin-1"), [[t.decode("latin-1"), v] for t, v in p.top]] for p in choice.positions
                ],
            }
            for choice in answer.choices
        ],
        "model": answer.model,
        "system_fingerprint": answer.system_fingerprint,
        "usage": answer.usage,
    }


def _answer(plain: dict[str, Any]) -> Answer:
    choices = tuple(
        Choice(
            str(choice["text"]),
            bool(choice["cut"]),
            tuple(
                Position(token.encode("latin-1"), tuple((t.encode("latin-1"), float(v)) for t, v in top))
                for token, top in choice["tokens"]
            ),
        )
        for choice in plain["choices"]
    )
    usage = plain["usage"]
    return Answer(choices, plain["model"], plain["system_fingerprint"], usage and (int(usage[0]), int(usage[1])))
