"""Texts that JavaScript's tokenizer, @huggingface/tokenizers, reads differently from the student's."""

from __future__ import annotations

import json
from typing import Any

from distillctl.snippets.reading import Reading

PACKAGE = "@huggingface/tokenizers"
VERSION = "0.2.0"
"""Compared with `tokenizers`, character by character over Unicode, for BERT's, GPT-2's, SentencePiece's and Unigram
tokenizers: only BERT's differs."""
BERT_OTHER_IDS = ("\U0002000b", "\u2e4a", "\u061d", "\u08e2")
"""One of each kind of characters that it reads differently: Chinese beyond U+FFFF, and punctuation and signs that are
new in Unicode. If letters are lowered, so is a Greek sigma at the end of a word; the snippets lower it beforehand."""
_LOWERED_OTHER_IDS = ("\u07fd", "\u1885")
"""Marks that are stripped as accents."""


def other_ids(reading: Reading) -> dict[str, tuple[str, ...]]:
    """Return, for bundle.json, package → some texts to which it is known to give other ids; or nothing."""
    normalizer: dict[str, Any] = json.loads(reading.tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    lowered = _LOWERED_OTHER_IDS if normalizer["lowercase"] and normalizer["strip_accents"] is not False else ()
    return {PACKAGE: (*BERT_OTHER_IDS, *lowered)}
