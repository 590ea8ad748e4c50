"""Escape control and invisible characters, so that text cannot control a terminal or hide parts of itself."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"
"""Joiners, which are part of Persian, Hindi and emoji, and move nothing."""


def printable(text: str, keep: str = "") -> str:
    r"""Escape every control character and every invisible one, such as ``\x1b`` and ``\u202e``, as Python does.

    keep: characters to leave as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or c in _JOINERS or _is_space(c) else repr(c)[1:-1] for c in text)


def _is_space(character: str) -> bool:
    """Tell whether a character is a space that does not end a line."""
    return character.isspace() and character not in "\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
