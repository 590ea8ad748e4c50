"""What JavaScript's tokenizer, @huggingface/tokenizers, reads otherwise than the one that a student learned with."""

from __future__ import annotations

import json
from typing import Any

from distillctl.snippets.reading import Reading

PACKAGE = "@huggingface/tokenizers"
VERSION = "0.2.0"
"""Compared with `tokenizers`, character by character over Unicode, for BERT's, GPT-2's, SentencePiece's and Unigram
tokenizers: only BERT's differs."""
BERT_OTHER_IDS = ("\U0002000b", "\u2e4a", "\u061d", "\u08e2")
"""Of characters that it reads otherwise, one of each kind: Chinese beyond U+FFFF, and punctuation and signs that came
late to Unicode. It reads a Greek sigma at the end of a word otherwise, too, where letters are lowered: for that the
snippets lower it beforehand."""
_LOWERED_OTHER_IDS = ("\u07fd", "\u1885")
"""And marks that are stripped as accents."""


def other_ids(reading: Reading) -> dict[str, tuple[str, ...]]:
    """For bundle.json: package → some texts that it is known to give other ids; empty where none is known."""
    normalizer: dict[str, Any] = json.loads(reading.tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    lowered = _LOWERED_OTHER_IDS if normalizer["lowercase"] and normalizer["strip_accents"] is not False else ()
    return {PACKAGE: (*BERT_OTHER_IDS, *lowered)}
