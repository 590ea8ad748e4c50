"""The tests. Their folders are the package's; what several tests share is in `fixtures`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
