"""Find responses that refer to a context which the student cannot see.

A student that learns such a response learns to make things up. There are two signs in the text: a run of words that the
teacher's context has and the student's view does not, and a phrase that points at a context.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WORDS = 4
"""Length of the shortest run of words that counts as copied."""

_CONTEXT = r"(?:context|instructions?|examples?|prompt|guidelines?|documents?|excerpts?|passages?)"
_SAID = (
    r"(?:stated|mentioned|noted|described|shown|explained|discussed|listed|defined|specified|outlined|indicated|seen)"
)
PHRASES: dict[str, tuple[str, ...]] = {
    "en": (
        rf"as (?:\w+ )?{_SAID} (?:\w+ )?(?:above|before|earlier|previously)",
        rf"(?:above|previously|earlier) {_SAID}",
        rf"{_SAID} (?:in|by) the (?:above |given |provided |previous )?{_CONTEXT}",
        rf"(?:according to|based on|following|as per|per) the (?:above |given |provided |previous )?{_CONTEXT}",
        rf"(?:above|given|provided|previous|preceding|retrieved) {_CONTEXT}",
        rf"{_CONTEXT} (?:above|provided|given)",
        r"system prompt",
        r"as (?:i was |you )?(?:instructed|requested|told)",
        r"i (?:was|am|have been) (?:instructed|told|given)",
    )
}
"""Language → regular expressions, matched as whole words in either case; a space is any white space."""

_POINTERS = re.compile(
    r"\b(?:" + "|".join(phrase.replace(" ", r"\s+") for some in PHRASES.values() for phrase in some) + r")\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_JSON_STRING_ENDS = re.compile(r'"\s*[:,\]}]')


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of a response, and the sign that was found."""

    start: int
    end: int
    why: Literal["copied", "phrase"]


def spans(
    responses: Sequence[str], contexts: Sequence[str], visible: Sequence[str], words: int = WORDS
) -> list[list[Span]]:
    """Return each response's suspicious spans, in order.

    contexts: what the teacher saw. visible: what the student sees. Copied runs are maximal, with at least ``words``
    words. A run that more than half of the responses share is part of the requested format, and ignored. In JSON, a run
    does not go on from one string to the next.
    """
    runs = [set(_runs([word for word, *_ in _words(text)], words)) for text in responses]
    common = Counter(run for text_runs in runs for run in text_runs)
    asked_for = {run for run, count in common.items() if count > max(1, len(responses) / 2)}
    result = []
    for text, context, seen in zip(responses, contexts, visible, strict=True):
        context_line, seen_line = _line(context), _line(seen)
        copied = _copied(text, words, asked_for, context_line, seen_line)
        pointing = (
            Span(match.start(), match.end(), "phrase")
            for match in _POINTERS.finditer(text)
            if _line(match[0]) not in seen_line
        )
        result.append(sorted([*copied, *pointing], key=lambda span: (span.start, span.end)))
    return result


def _copied(text: str, words: int, asked_for: set[str], context: str, seen: str) -> Iterator[Span]:
    """Yield copied runs; overlapping ones are joined."""
    tokens = _words(text)
    is_json = text.lstrip().startswith(("{", "["))
    start = end = -1
    for first, run in enumerate(_runs([word for word, *_ in tokens], words)):
        if run in asked_for or run not in context or run in seen:
            continue
        if is_json and _JSON_STRING_ENDS.search(text, tokens[first][2], tokens[first + words - 1][1]):
            continue
        if tokens[first][1] > end:
            if end >= 0:
                yield Span(start, end, "copied")
            start = tokens[first][1]
        end = tokens[first + words - 1][2]
    if end >= 0:
        yield Span(start, end, "copied")


def _words(text: str) -> list[tuple[str, int, int]]:
    """Return each word, case folded, with its start and end."""
    return [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


def _runs(words: Sequence[str], length: int) -> list[str]:
    """Return every run of ``length`` words, with a space on both sides."""
    return [f" {' '.join(words[i : i + length])} " for i in range(len(words) - length + 1)]


def _line(text: str) -> str:
    """Return all words of a text as one run."""
    return f" {' '.join(word for word, *_ in _words(text))} "
