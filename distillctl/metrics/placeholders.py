"""Compare the placeholders of an input with those of an answer: what a program replaces, or a browser reads as markup.

An answer that loses `%(name)s`, or invents `{0}`, breaks the program that shows it. Human translators keep the
placeholders of 98.3 % of the messages that have any (`make bench-text-checks`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

PATTERN = "|".join(
    (
        r"%(?:\([^()\s]+\))?(?:\d+\$)?[-+#0]*\d*(?:\.\d+)?(?:hh?|ll?)?[diouxXeEfFgGcrsa@]",  # %s, %(name)s, %1$s, %.2f
        r"%%",
        r"\$\{[^{}\s]+\}",  # ${name}
        r"\{\{[^{}]*\}\}",  # {{ name }}
        r"""\{[^{}\s"']*\}""",  # {}, {0}, {name}, but no JSON
        r"""</?[A-Za-z][A-Za-z0-9-]*(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""",  # <b>, </b>, <a href="…">
        r"&(?:[A-Za-z]\w*|#\d+|#x[0-9A-Fa-f]+);",  # &amp;
        r"(?<![A-Z])&(?=\w)|&(?=[a-z])",  # &File, but not R&D
    )
)
"""Formats of printf, Python, JavaScript and Qt; tags and entities of HTML; and the mark before the letter of a menu's
shortcut, which may move. Python, JavaScript, Java and ICU read it alike."""
_PLACEHOLDER = re.compile(PATTERN)


@dataclass(frozen=True)
class Difference:
    """The placeholders that an answer lacks, and those that it should not have."""

    missing: list[str]
    extra: list[str]


def find(text: str) -> list[str]:
    """Return the placeholders in order."""
    return _PLACEHOLDER.findall(text)


def difference(text: str, answer: str) -> Difference | None:
    """Compare as multisets; None if both have the same. The order may change, as it does between languages."""
    wanted, given = Counter(find(text)), Counter(find(answer))
    if wanted == given:
        return None
    return Difference(sorted((wanted - given).elements()), sorted((given - wanted).elements()))
