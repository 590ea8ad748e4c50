"""Every hostile file: one clear error and an exit code of the family, bounded time and memory, nothing touched.

One file in four or five is tried here, fewer where commands take long; `python -m tests.hostile` tries all.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.hostile import cases

pytestmark = [pytest.mark.long, pytest.mark.slow]

EACH = {
    "recipes": 6, "templates": 6, "data": 6, "parquet": 6, "gguf": 8, "models": 10, "onnx": 6, "answers": 5,
    "shards": 8, "tables": 8, "checkpoints": 14, "metrics": 12, "devices": 9, "manifests": 7, "bundles": 4,
    "listings": 2, "cards": 2, "served": 2, "messages": 2, "genai": 2, "overrides": 5, "strangers": 8, "trust": 9,
    "journals": 8, "caches": 6,
}  # fmt: skip
"""Format → one of so many files is tried."""
PROMISED = 1_200
"""Files in the corpus."""


def chosen() -> list[cases.Case]:
    found = []
    for format in cases.formats():
        of_format = [case for case in cases.all_cases() if case.format == format]
        found += of_format[:: EACH.get(format, 1)]
    return found


def test_the_corpus_is_what_is_promised():
    everything = cases.all_cases()
    assert len(everything) >= PROMISED
    assert {case.format for case in everything} <= set(cases.formats())
    assert all(case.path.stat().st_size < 20_000 for case in everything)
    assert sum(case.path.stat().st_size for case in everything) < 2_000_000


def test_hostile_files():
    """In a process of its own: its children are forked from one that has computed nothing."""
    command = [sys.executable, "-m", "tests.hostile", *(case.name for case in chosen())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    bad = [text for text in done.stderr.split("\n") if "!!" in text]
    assert done.returncode == 0, "\n".join([*bad, str(found), done.stderr[-6000:]])
    assert (found["tracebacks"], found["escapes"], found["problems"]) == (0, 0, 0)
    assert found["slowest_seconds"] < 5
    assert found["largest_bytes"] < 1 << 30
