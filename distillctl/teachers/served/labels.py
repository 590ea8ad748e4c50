"""Label log-probabilities from the likeliest tokens that a server shows.

log Pr(words | view) is the sum of the log-probabilities of the words' tokens, each after the ones before (the chain
rule). A label whose next token is not among those shown is *unseen*: its probability is at most that of the last token
shown, and at most what all those shown leave. The smaller of the two is stored, as an upper bound, and marked.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distillctl.errors import RecipeError
from distillctl.teachers.served.protocol import Position
from distillctl.teachers.served.vocabulary import Vocabulary

LEAST = 1e-9
"""A mass that is left below is the rounding of float32."""
SHARED = 0.01
"""A first token that begins two labels and is likelier than that leaves a chat no way to tell them apart."""
Next = Callable[[bytes], Awaitable[Position]]
"""The distribution of the token after the view and what was said so far."""


@dataclass(frozen=True)
class Label:
    """words: with the answer's prefix; tokens: where the tokenizer is known, as the model writes them."""

    name: str
    words: bytes
    tokens: tuple[bytes, ...] | None = None

    def next(self, said: bytes, position: Position) -> tuple[bytes, float] | None:
        """The token that goes on with the words after ``said`` and its log-probability, if it is shown: the one the
        tokenizer has there, or without one the longest that begins what is left."""
        if self.tokens is not None:
            place = 0
            while said:
                said, place = said[len(self.tokens[place]) :], place + 1
            fitting = [one for one in position.top if one[0] == self.tokens[place]]
        else:
            rest = self.words[len(said) :]
            fitting = [one for one in position.top if one[0] and rest.startswith(one[0])]
        return max(fitting, key=lambda one: len(one[0]), default=None)


@dataclass(frozen=True)
class Scores:
    """Of one row: log_probs float32 [K]; seen bool [K], False for upper bounds; mass: Σ Pr over the labels seen."""

    log_probs: np.ndarray
    seen: np.ndarray
    mass: float


def labels(words: dict[str, str], prefix: str, vocabulary: Vocabulary | None, *, first_only: bool) -> list[Label]:
    """The recipe's labels. RecipeError where ``first_only`` (a chat) and two of them begin with the same token."""
    found = []
    for name, said in words.items():
        whole = prefix + said
        ids = None if vocabulary is None else vocabulary.encode(whole)
        tokens = None if ids is None or vocabulary is None else tuple(vocabulary.tokens[i] for i in ids)
        found.append(Label(name, whole.encode(), tokens))
    if first_only and vocabulary is not None:
        first: dict[bytes, Label] = {}
        for label in found:
            assert label.tokens is not None
            other = first.setdefault(label.tokens[0], label)
            if other is not label:
                raise shared(other, label, label.tokens[0])
    return found


async def score(labels: Sequence[Label], following: Next, *, first_only: bool) -> Scores:
    """All labels of one row. ``following`` is asked once per distinct beginning; ``first_only``: for nothing but the
    first token, whose probability then stands for the whole word's."""
    if first_only:
        return _by_first_token(labels, await following(b""))
    log_probs, seen = np.empty(len(labels), np.float32), np.zeros(len(labels), bool)
    for k, label in enumerate(labels):
        log_probs[k], seen[k] = await _chain(label, following)
    return _scores(log_probs, seen)


async def _chain(label: Label, following: Next) -> tuple[float, bool]:
    """The label's log-probability, or an upper bound of it.

    Without the tokenizer a beginning may be shown that is not the model's own way to write the word (" a" of
    " abbreviation"): where it leads to less than a token that is not shown might have, that bound is what counts.
    """
    said, total, highest = b"", 0.0, -math.inf
    while said != label.words:
        position = await following(said)
        step = label.next(said, position)
        if label.tokens is None or step is None:
            highest = max(highest, total + bound(position))
        if step is None:
            return highest, False
        said, total = said + step[0], total + step[1]
    return (total, True) if total >= highest else (highest, False)


def _by_first_token(labels: Sequence[Label], position: Position) -> Scores:
    steps = [label.next(b"", position) for label in labels]
    log_probs, seen = np.full(len(labels), bound(position), np.float32), np.zeros(len(labels), bool)
    for k, (label, step) in enumerate(zip(labels, steps, strict=True)):
        if step is None:
            continue
        other = next((j for j, found in enumerate(steps) if j != k and found and found[0] == step[0]), None)
        if other is None:
            log_probs[k], seen[k] = step[1], True
        elif math.exp(step[1]) > SHARED:
            raise shared(labels[other], label, step[0])
        else:  # a letter that begins both words, and how the model begins neither
            log_probs[k] = max(step[1], float(log_probs[k]))
    return _scores(log_probs, seen)


def _scores(log_probs: np.ndarray, seen: np.ndarray) -> Scores:
    return Scores(log_probs, seen, float(np.exp(log_probs[seen].astype(np.float64)).sum()))


def bound(position: Position) -> float:
    """The log of the most that a token which is not shown can have."""
    return min(position.top[-1][1], math.log(max(position.left, LEAST)))


def shared(one: Label, other: Label, token: bytes) -> RecipeError:
    """That a chat cannot tell two labels apart."""
    return RecipeError(
        f"{one.name} and {other.name} begin with the same token, {token.decode(errors='replace')!r}, and in a chat "
        "only the first one can be asked for",
        where="task.labels",
        next="choose words that begin differently, or use teacher.api: completions",
    )
