"""Put untrusted text into Markdown so that it shows literally in every renderer.

Labels, licences and file names cannot add headings, images, links or HTML, nor leave their table cell or code span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from distillctl.untrusted.printable import printable

_SPECIAL = re.compile(
    r"[\\`*\[\]#~$|@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=[A-Za-z]):(?=//)|(?<=www)\.", re.IGNORECASE
)
"""Characters that Markdown interprets, and those that make GitHub link an address (https://…, name@host, www.…)."""
_MARKER = re.compile(r"^(\d+)([.)])|^([-+])")
"""Beginning of a line that would become a list or a heading."""


def plain(text: str) -> str:
    """Return ``text`` escaped, as part of a line."""
    line = printable(" ".join(text.splitlines()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKER.sub(r"\g<1>\\\g<2>\g<3>", _SPECIAL.sub(r"\\\g<0>", line))


def code(text: str) -> str:
    """Return ``text`` as a code span within a line."""
    line = printable(" ".join(text.splitlines()))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    room = " " if line[:1] == "`" or line[-1:] == "`" or not line.strip() else ""
    return f"{fence}{room}{line}{room}{fence}"


def block(text: str, language: str = "") -> str:
    """Return ``text`` as a code block."""
    text = printable(text, keep="\n\t")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, figures: bool = False) -> list[str]:
    """Return the lines of a table. Cells are Markdown already, as from `plain`.

    figures: align all columns but the first to the right.
    """
    rule = ["---", *["---:" if figures else "---"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
