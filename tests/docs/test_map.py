"""distillctl/README.md names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import distillctl
from tests import ROOT

PACKAGE = Path(distillctl.__file__).parent
PAGE = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_every_folder_has_its_line_and_every_line_its_folder() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)
    assert listed == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_every_file_and_folder_that_is_named_exists() -> None:
    named = set(re.findall(r"`([a-z_/]+(?:/|\.py|\.toml))`", PAGE)) | set(re.findall(r'\["([a-z_]+(?:/|\.py))', PAGE))
    assert len(named) > 30
    missing = [name for name in named if not any((root / name).exists() for root in (PACKAGE, PACKAGE.parent))]
    assert not missing


def test_the_tests_have_the_folders_of_the_package_and_those_that_the_page_names() -> None:
    more = set(re.findall(r"`tests/(\w+)/`", PAGE))
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(folders) > 25
    assert not [folder for folder in folders if not (ROOT / "tests" / folder / "__init__.py").exists()]
    of_the_package = {folder for folder in folders if (PACKAGE / folder / "__init__.py").exists()}
    assert {folder.parts[0] for folder in folders - of_the_package} <= more
    assert not [name for name in more if (PACKAGE / name).exists() or not (ROOT / "tests" / name).exists()]


def test_the_glossary_is_short_and_in_order() -> None:
    words = re.findall(r"^\| ([a-z, ]+) \| ", PAGE.partition("## Glossary")[2], re.MULTILINE)[1:]
    assert words == sorted(words)
    assert 10 < len(words) <= 40
