"""Tokenize answers together with the views that they follow.

A tokenizer gives words alone other tokens than words after a text. SentencePiece writes "▁ ▁billing" for " billing"
alone and "▁billing" after a view, and if a view ends in a space, the space belongs to the word's first token. A model
is trained on whole texts, so it writes the tokens that the whole text has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TAIL_CHARACTERS, _TAIL_TOKENS = 64, 8
"""Views with the same ending of this length give answers the same tokens: no token in use is longer."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class InPlace:
    """A view and its answers as tokens.

    view: the token ids before every answer. answers: the token ids of the K answers after it, at least one each.
    merged: how many of the view's last tokens became part of the answers' first tokens.
    """

    view: list[int]
    answers: tuple[tuple[int, ...], ...]
    merged: int


class AnswerTokenizer:
    """Tokenize answers after views, and reuse the result for views with the same ending."""

    def __init__(self, encode: Encode) -> None:
        """encode: text → token ids, with the special tokens that the model expects before a text, and none after it."""
        self._encode = encode
        self._known: dict[tuple[object, ...], tuple[int, tuple[tuple[int, ...], ...]]] = {}

    def __call__(self, view: str, continuations: Sequence[str]) -> InPlace:
        """Tokenize a view and its answers. continuations: the text of each answer, as it follows the view.

        All answers are scored after the same tokens, so that their probabilities can be compared: the longest prefix
        that the view and all whole texts share and that leaves every answer a token.
        """
        view_ids = self._encode(view)
        key = (tuple(continuations), view[-_TAIL_CHARACTERS:], tuple(view_ids[-_TAIL_TOKENS:]))
        if key not in self._known:
            whole = [self._encode(view + text) for text in continuations]
            shared = min(min(_common(view_ids, ids), len(ids) - 1) for ids in whole)
            self._known[key] = len(view_ids) - shared, tuple(tuple(ids[shared:]) for ids in whole)
        merged, answers = self._known[key]
        return InPlace(view_ids[: len(view_ids) - merged], answers, merged)


def _common(first: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the shared prefix of two token sequences."""
    size = min(len(first), len(other))
    return next((place for place in range(size) if first[place] != other[place]), size)
