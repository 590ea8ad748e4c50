"""Write metrics.jsonl: one JSON object per line for every step and every evaluation, of all runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pydantic_core import from_json

from distillctl import ranks
from distillctl.run_dir.workspace import open_to_append, writable, write_text


@contextlib.contextmanager
def opened(metrics: Path, run: str, step: int) -> Iterator[TextIO]:
    """Open the log to continue a run after ``step``. Only the first rank writes."""
    if not ranks.is_first():
        with open(os.devnull, "a", encoding="utf-8") as log:
            yield log
        return
    keep_lines(metrics, run, step)
    with writable(metrics), open(metrics, "a", encoding="utf-8", opener=open_to_append) as log:
        yield log
        flush_to_disk(log)


def flush_to_disk(log: TextIO) -> None:
    """Write the lines to disk. Call it before a checkpoint that includes these steps is saved."""
    log.flush()
    if ranks.is_first():
        os.fsync(log.fileno())


def write(log: TextIO, **line: Any) -> None:
    """Add a line, which has at least ``run`` and ``step``."""
    log.write(json.dumps(line) + "\n")


def parsed(text: str) -> dict[str, Any] | None:
    """Parse a line that `write` wrote. Return None for an incomplete one, which a kill can leave."""
    try:
        line = from_json(text)
    except ValueError:
        return None
    is_whole = isinstance(line, dict) and isinstance(line.get("run"), str) and isinstance(line.get("step"), int)
    return line if is_whole and all(_is_number(value) for key, value in line.items() if key != "run") else None


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)


def keep_lines(metrics: Path, run: str, step: int) -> None:
    """Remove the run's lines after ``step``, which will be written again."""
    if not metrics.exists():
        return
    kept = []
    for text in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        line = parsed(text)
        if line is not None and (line["run"] != run or line["step"] <= step):
            kept.append(text + "\n")
    write_text(metrics, "".join(kept))
