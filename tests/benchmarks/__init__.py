"""What `make bench-…` measures, each beside the plain way of doing the same."""

from __future__ import annotations

import os

from tests import ROOT


def python_path() -> str:
    """Return a PYTHONPATH with which a process that is started anywhere can import the benchmarks."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)
