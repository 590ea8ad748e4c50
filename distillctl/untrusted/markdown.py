"""Strangers' text in Markdown: as it is, whoever renders it. Labels, licences and file names give a page no headings,
images, links or HTML, and cannot leave the cell or the code that they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from distillctl.untrusted.printable import printable

_SPECIAL = re.compile(
    r"[\\`*\[\]#~$|@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=[A-Za-z]):(?=//)|(?<=www)\.", re.IGNORECASE
)
"""What Markdown reads as its own; of an address (https://…, name@host, www.…), which GitHub would link, the sign that
makes it one."""
_MARKER = re.compile(r"^(\d+)([.)])|^([-+])")
"""What makes a list or a heading of a line that begins with it."""


def plain(text: str) -> str:
    """``text`` as a part of a line."""
    line = printable(" ".join(text.splitlines()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKER.sub(r"\g<1>\\\g<2>\g<3>", _SPECIAL.sub(r"\\\g<0>", line))


def code(text: str) -> str:
    """``text`` as code within a line; a cell's end in it is written so that a table keeps its columns."""
    line = printable(" ".join(text.splitlines()))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if line[:1] == "`" or line[-1:] == "`" or not line.strip() else ""
    return f"{fence}{room}{line}{room}{fence}"


def block(text: str, language: str = "") -> str:
    """``text`` as lines of code."""
    text = printable(text, keep="\n\t")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, figures: bool = False) -> list[str]:
    """Lines of a table whose cells are Markdown already, such as `plain` makes. figures: all columns but the first are
    set to the right."""
    rule = ["---", *["---:" if figures else "---"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
