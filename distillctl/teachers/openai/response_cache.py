"""Store every answer that was paid for as soon as it arrives: one JSON line each, only ever appended.

A line in the file survives a killed process at once, and a power cut after a second. Lines that these tore off, and
other damaged ones, are set aside when the file is opened. Answers are found by their request, so a changed request is
sent again, and an unchanged one is never paid for twice.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from distillctl import console
from distillctl.run_dir import checksums
from distillctl.run_dir.workspace import make_folder, open_to_append, replacing, writable
from distillctl.teachers.openai.protocol import ROUNDING, Answer, Choice, Count, Position
from distillctl.untrusted import regular_files

SYNC_LINES, SYNC_SECONDS = 64, 1.0
DAMAGED = "answers.damaged.jsonl"
"""Damaged lines, kept for people."""
_LINE_BYTES = 32 << 20
LogProb = Annotated[float, Field(le=ROUNDING)]


class _PlainChoice(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str
    cut: bool
    tokens: list[tuple[str, list[tuple[str, LogProb]]]]


class _PlainAnswer(BaseModel):
    """An answer as `_plain` returns it."""

    model_config = ConfigDict(extra="forbid")
    choices: list[_PlainChoice]
    model: str | None
    system_fingerprint: str | None
    usage: tuple[Count, Count] | None

    def parsed(self) -> Answer:
        """Return the answer. Raise ValueError for invalid tokens, or if log-probabilities sum to more than 1."""
        choices = []
        for choice in self.choices:
            positions = []
            for token, top in choice.tokens:
                if math.fsum(math.exp(log_prob) for _, log_prob in top) > 1 + ROUNDING:
                    raise ValueError("the probabilities sum to more than 1")
                shown = tuple((text.encode("latin-1"), log_prob) for text, log_prob in top)
                positions.append(Position(token.encode("latin-1"), shown))
            choices.append(Choice(choice.text, choice.cut, tuple(positions)))
        return Answer(tuple(choices), self.model, self.system_fingerprint, self.usage)


class _Entry(BaseModel):
    """One line: an answer and its milliseconds, or tokens that were paid for without an answer."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(max_length=200)
    used: tuple[Count, Count]
    ms: float | None = Field(default=None, ge=0, le=1e12)
    answer: _PlainAnswer | None = None


class ResponseCache:
    """Answers by key, on disk; their positions are in memory. The run directory's lock allows one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used = (0, 0)
        """Tokens read and written by all requests, including those that were paid for without an answer."""
        self.milliseconds: list[float] = []
        """The time of each answer, from its request to its last byte."""
        self._places: dict[str, tuple[int, int]] = {}
        with writable(path):
            make_folder(path.parent)
            self._file = open_to_append(path)
            self._end = self._read()
        self._unsynced, self._synced = 0, time.monotonic()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, or None."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        entry = _entry(os.pread(self._file, length, start))
        assert entry.answer is not None
        return entry.answer.parsed()

    def keep(self, key: str, answer: Answer, used: tuple[int, int], milliseconds: float) -> None:
        """Store an answer, its tokens and its time."""
        self._append(_Entry(key=key, used=used, ms=round(milliseconds, 1), answer=_plain(answer)))

    def lose(self, key: str, used: tuple[int, int]) -> None:
        """Store the estimated tokens that were paid for without an answer."""
        self._append(_Entry(key=key, used=used))

    def close(self) -> None:
        """Write everything to disk and close the file."""
        with writable(self.path):
            os.fsync(self._file)
        os.close(self._file)

    def _append(self, entry: _Entry) -> None:
        line = checksums.put(entry.model_dump_json(exclude_unset=True)).encode()
        with writable(self.path):
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:
                os.ftruncate(self._file, self._end)  # half a line would become part of the next one
                raise
            self._unsynced += 1
            if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._unsynced, self._synced = 0, time.monotonic()
        self._count(entry, self._end, len(line))
        self._end += len(line)

    def _read(self) -> int:
        """Index the file, and return its length.

        Damaged lines are set aside, and their requests are sent again.
        """
        damaged = [(start, length) for start, line, length in self._lines() if not self._index(line, start, length)]
        if not damaged:
            return os.fstat(self._file).st_size
        self._set_aside(damaged)
        self.used, self.milliseconds, self._places = (0, 0), [], {}
        for start, line, length in self._lines():
            self._index(line, start, length)
        return os.fstat(self._file).st_size

    def _lines(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield each line's start, the line, and its length; the first part of a line that is too long to be ours."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            start = 0
            while line := file.readline(_LINE_BYTES):
                length = len(line)
                while not line.endswith(b"\n") and (more := file.readline(_LINE_BYTES)):
                    length += len(more)
                    if more.endswith(b"\n"):
                        break
                yield start, line, length
                start += length

    def _index(self, line: bytes, start: int, length: int) -> bool:
        """Count a line. Return False if it was not written here."""
        if len(line) < length or not line.endswith(b"\n"):
            return False
        try:
            entry = _entry(line)
            if entry.answer is not None:
                entry.answer.parsed()
        except ValueError:
            return False
        self._count(entry, start, length)
        return True

    def _set_aside(self, damaged: list[tuple[int, int]]) -> None:
        """Move damaged lines to a file next to the cache, after earlier ones, and warn."""
        set_aside = self.path.with_name(DAMAGED)
        with replacing(set_aside) as temporary, temporary.open("wb") as kept:
            if set_aside.is_file() and not set_aside.is_symlink():
                with regular_files.opened(set_aside) as before:
                    shutil.copyfileobj(before, kept)
            for start, length in damaged:
                kept.writelines(self._pieces(start, start + length))
        with replacing(self.path) as temporary, temporary.open("wb") as sound:
            at = 0
            for start, length in [*damaged, (os.fstat(self._file).st_size, 0)]:
                sound.writelines(self._pieces(at, start))
                at = start + length
        os.close(self._file)
        self._file = open_to_append(self.path)
        lines = f"{len(damaged):,} damaged line{'s' if len(damaged) > 1 else ''}"
        console.warn(f"{self.path}: {lines} moved to {DAMAGED}; their requests are sent again")

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            piece = os.pread(self._file, min(1 << 20, end - start), start)
            yield piece
            start += len(piece)

    def _count(self, entry: _Entry, start: int, length: int) -> None:
        self.used = self.used[0] + entry.used[0], self.used[1] + entry.used[1]
        if entry.answer is not None and entry.ms is not None:
            self.milliseconds.append(entry.ms)
            self._places[entry.key] = start, length


def _entry(line: bytes) -> _Entry:
    """Parse a line. Raise ValueError if it is damaged."""
    document, _ = checksums.read(line, allow_inf_nan=True)
    entry = _Entry.model_validate(document)
    if (entry.answer is None) != (entry.ms is None):
        raise ValueError("not a line of this cache")
    return entry


def _plain(answer: Answer) -> _PlainAnswer:
    """Convert an answer for JSON. Bytes, which need not be text, become one character each."""
    choices = [
        _PlainChoice(
            text=choice.text,
            cut=choice.cut,
            tokens=[
                (position.token.decode("latin-1"), [(text.decode("latin-1"), value) for text, value in position.top])
                for position in choice.positions
            ],
        )
        for choice in answer.choices
    ]
    return _PlainAnswer(
        choices=choices, model=answer.model, system_fingerprint=answer.system_fingerprint, usage=answer.usage
    )
