"""metrics.jsonl: one JSON object a line for every step and every look at the held-out rows, of all runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from distillctl.workspace import write_text


def write(log: TextIO, **line: Any) -> None:
    """Add a line; it has at least ``run`` and ``step``."""
    log.write(json.dumps(line) + "\n")


def keep(log: TextIO) -> None:
    """What was written outlasts a loss of power: a checkpoint goes on behind these lines."""
    log.flush()
    os.fsync(log.fileno())


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
