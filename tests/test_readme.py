"""README's table of what strangers can and cannot do: every line names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"^\| \| can \| cannot \| test \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)


def _lines() -> list[list[str]]:
    found = TABLE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[1].splitlines()]


def test_every_line_has_its_tests():
    for cells in _lines():
        assert len(cells) == 4, cells
        assert all(cells), cells
        path = ""
        for named in re.findall(r"`([^`]*)`", cells[3]):
            file, _, test = named.partition("::")
            path = file or path
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), named


def test_every_kind_of_stranger_has_a_line():
    subjects = " ".join(cells[0] for cells in _lines())
    for subject in ("recipe", "model folder", "bundle", "run directory", "server"):
        assert subject in subjects
