"""Quote texts as string literals of the snippets' languages."""

from __future__ import annotations

import json
from collections.abc import Callable

python = repr


def javascript(text: str) -> str:
    """Return the text as a JSON string, which is also a JavaScript literal."""
    return json.dumps(text, ensure_ascii=False)


def kotlin(text: str) -> str:
    """Return the text as a Kotlin string literal."""
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "$": "\\$"}
    return _quoted(text, short, lambda character: "".join(f"\\u{unit:04x}" for unit in _utf16(character)))


def swift(text: str) -> str:
    """Return the text as a Swift string literal."""
    return _quoted(text, {"\n": "\\n", "\t": "\\t", "\r": "\\r"}, lambda character: f"\\u{{{ord(character):x}}}")


def _quoted(text: str, short: dict[str, str], code: Callable[[str], str]) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", **short}
    return f'"{"".join(escapes.get(c) or (c if c.isprintable() else code(c)) for c in text)}"'


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be")
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
