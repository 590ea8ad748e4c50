"""Text that gives a terminal no orders and shows all of itself: what cannot be seen is written out."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""Part of how Persian, Hindi and emoji are written; they move nothing."""


def printable(text: str, keep: str = "") -> str:
    r"""``text`` with every control character and every invisible one (escape sequences, bidi overrides) as Python
    would write it, such as ``\x1b`` and ``\u202e``. keep: characters to leave, such as a newline."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or c in _JOINERS or _is_space(c) else repr(c)[1:-1] for c in text)


def _is_space(character: str) -> bool:
    """A space of another width, which no line ends at."""
    return character.isspace() and character not in "\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
