"""Find the id of a token that a server names by text or bytes, with the model's tokenizer if the recipe names it.

Opening a tokenizer imports transformers, and so torch; nothing else does.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from distillctl.data.responses import token_texts

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
"""SentencePiece's mark for a space."""


class TokenBytes:
    """The tokens of a tokenizer by their bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def tokens(self) -> list[bytes]:
        """Return each token's bytes within a text; for special tokens their names."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        added = {token["id"] for token in backend["added_tokens"]}
        kinds = re.findall(r'"type":\s*"(\w+)"', json.dumps([backend.get("decoder"), backend.get("pre_tokenizer")]))
        if "ByteLevel" in kinds:
            spell = _byte_level
        elif "ByteFallback" in kinds or "Metaspace" in kinds or backend["model"].get("byte_fallback"):
            spell = _sentence_piece
        else:
            return [text.encode() for text in token_texts(self.tokenizer)]
        return [(name or "").encode() if i in added else spell(name or "") for i, name in enumerate(names)]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Return bytes → id.

        If several tokens have the same bytes (a single byte that is also a character), the last one counts, which
        models write: single bytes come first in every vocabulary.
        """
        return {token: i for i, token in enumerate(self.tokens) if token}


def _byte_level(name: str) -> bytes:
    """Undo GPT-2's spelling of bytes as printable characters."""
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in name)


def _sentence_piece(name: str) -> bytes:
    byte = _BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _spelling() -> dict[str, int]:
    """Return character → byte (Radford et al. 2019, `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _spelling()
