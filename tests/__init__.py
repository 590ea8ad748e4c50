"""The tests. Their folders are the package's; what several tests share is in `fixtures`."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python_path() -> str:
    """Return a PYTHONPATH with which a process finds this copy of package and tests, whatever folder it starts in."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, before)]))
