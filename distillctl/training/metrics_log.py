"""metrics.jsonl: one JSON object a line for every step and every look at the held-out rows, of all runs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from distillctl import ranks
from distillctl.workspace import writable, write_text


@contextlib.contextmanager
def opened(metrics: Path, run: str, step: int) -> Iterator[TextIO]:
    """To go on after ``step`` of a run; of several ranks the first writes."""
    if ranks.is_first():
        keep_lines(metrics, run, step)
    else:
        metrics = Path(os.devnull)
    with writable(metrics), metrics.open("a", encoding="utf-8") as log:
        yield log
        settle(log)


def settle(log: TextIO) -> None:
    """Before a checkpoint says that these steps were done: their lines are on the disk."""
    log.flush()
    if ranks.is_first():
        os.fsync(log.fileno())


def write(log: TextIO, **line: Any) -> None:
    """Add a line; it has at least ``run`` and ``step``."""
    log.write(json.dumps(line) + "\n")


def keep_lines(metrics: Path, run: str, step: int) -> None:
    """Drop the run's lines after ``step``, which will be written again."""
    if not metrics.exists():
        return
    kept = []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # torn by a kill
        if line["run"] != run or line["step"] <= step:
            kept.append(text + "\n")
    write_text(metrics, "".join(kept))
