"""What the project's Markdown pages show: command lines, links and code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "distillctl" / "README.md",
    ROOT / "distillctl" / "README.md",
    *sorted((ROOT / "distillctl" / "guide").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*.md")),
    ROOT / "tests" / "benchmarks" / "README.md",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code in a language."""
    return [code for name, code in _FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def prose(page: Path) -> str:
    """Return the page without its blocks of code, each paragraph's lines joined."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def spans(page: Path) -> list[str]:
    """Return the code within the prose."""
    return [re.sub(r"\s+", " ", code) for code in _CODE.findall(prose(page))]


def links(page: Path) -> list[str]:
    """Return where the page's links and images lead."""
    return _LINK.findall(prose(page))


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of each of distillctl's and make's command lines, in a shell's block or in the prose."""
    in_blocks = "".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in in_blocks.splitlines() + spans(page):
        words = re.sub(r"^torchrun .*-m distillctl\b", "distillctl", line)
        if re.match(r"(distillctl|make)( |$)", words):
            yield shlex.split(words, comments=True)
