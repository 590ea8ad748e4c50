"""A sample of `tests.terminal.matrix`: every kind of output in every locale, and every light command."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from tests.terminal import matrix

pytestmark = pytest.mark.slow

LIGHT = [command for command in matrix.QUICK if command not in ("train RUN", "run RUN", "run RUN --json")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminals")
    (folder / "project").mkdir()
    matrix.make(folder / "project", "collect")
    return folder


def test_no_output_and_no_locale_makes_a_command_fail(folder):
    places = list(itertools.product(matrix.OUTPUTS, matrix.locales(folder)))
    cells = [(command, *place) for command, place in zip(itertools.cycle(LIGHT), places, strict=False)]
    found = matrix.check(folder, cells)
    assert {command for command, *_ in cells} == set(LIGHT)
    assert found == []


def test_a_live_bar_on_a_narrow_terminal(folder):
    ended = matrix.run("collect FORCED --force", "terminal of 40", {"LC_ALL": "C.UTF-8"}, folder / "project")
    assert ended.code == 0, ended.out
    assert b"\x1b[?25l" in ended.out  # the cursor is hidden while a bar is drawn
    assert b"Traceback" not in ended.out


def test_a_narrow_terminal_shows_the_numbers_of_a_wide_one(folder):
    shown = {}
    for width in (30, 40, 200):
        ended = matrix.run("run RUN --dry-run", f"terminal of {width}", {"LC_ALL": "C.UTF-8"}, folder / "project")
        assert ended.code == 0, ended.out
        shown[width] = matrix.numbers(ended.out)
    assert len(shown[200]) > 10
    assert shown[200] <= shown[40]
    assert shown[200] <= shown[30]


def test_json_is_the_same_bytes_in_every_locale(folder):
    said = {
        name: matrix.run("run RUN --dry-run --json", "pipe", locale, folder / "project").out
        for name, locale in matrix.locales(folder).items()
    }
    assert len(set(said.values())) == 1, said
    assert json.loads(next(iter(said.values())))["rows"]


def test_what_a_locale_lacks_is_replaced(folder):
    sets = {"LC_ALL": "C", **matrix.STRICT}
    ended = matrix.run("collect RUN", "pipe", sets, folder / "project")
    assert ended.code == 0, ended.err
    assert re.search(rb"ceiling +\d\.\d+ +\(\d\.\d+ \? \d\.\d+\)", ended.out), ended.out
