"""The tokens of answers in their place: a view and what follows it are tokenized together.

A tokenizer makes other tokens of words alone than of words that follow a text: one of the SentencePiece kind writes
"▁ ▁billing" for " billing" alone and "▁billing" after a view, and where a view ends in a space, the space belongs to
the first token of the word. The model was trained on whole texts, so what it would write is what the tokenizer makes of
the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TAIL_CHARACTERS, _TAIL_TOKENS = 64, 8
"""Texts that end alike have answers of the same tokens: no token of the vocabularies in use is longer."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class InPlace:
    """view: the token ids before every answer; answers: the K answers' token ids after it, each of at least one;
    merged: how many of the view's own last tokens the answers' first tokens have taken in."""

    view: list[int]
    answers: tuple[tuple[int, ...], ...]
    merged: int


class AnswerTokenizer:
    """Tokenizes answers after views, and remembers what it found for views that end alike."""

    def __init__(self, encode: Encode) -> None:
        """encode: text → token ids, with what the model wants to stand before them and nothing after."""
        self._encode = encode
        self._known: dict[tuple[object, ...], tuple[int, tuple[tuple[int, ...], ...]]] = {}

    def __call__(self, view: str, continuations: Sequence[str]) -> InPlace:
        """continuations: the text of each answer, as it follows the view.

        All answers are scored after the same tokens, or their probabilities could not be compared: the longest
        beginning that the view and all whole texts have in common, and that leaves every answer a token.
        """
        own = self._encode(view)
        key = (tuple(continuations), view[-_TAIL_CHARACTERS:], tuple(own[-_TAIL_TOKENS:]))
        if key not in self._known:
            whole = [self._encode(view + text) for text in continuations]
            shared = min(min(_common(own, ids), len(ids) - 1) for ids in whole)
            self._known[key] = len(own) - shared, tuple(tuple(ids[shared:]) for ids in whole)
        merged, answers = self._known[key]
        return InPlace(own[: len(own) - merged], answers, merged)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many token ids two texts begin with in common."""
    size = min(len(one), len(other))
    return next((place for place in range(size) if one[place] != other[place]), size)
