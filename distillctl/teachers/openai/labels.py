"""Compute label log-probabilities from the likeliest tokens that a server shows.

log Pr(words | view) is the sum of the log-probabilities of the words' tokens, each after the ones before (the chain
rule). A label whose next token is not shown is *unseen*: its probability is at most that of the last token shown, and
at most the mass that those shown leave. The smaller of the two is stored and marked as an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distillctl.errors import RecipeError
from distillctl.soft_labels.labels import measured
from distillctl.teachers.exclusive import exclusive
from distillctl.teachers.openai.protocol import Position

LEAST = 1e-9
"""Smallest remaining mass; less is rounding of float32."""
BELOW = 1e-5
"""Nats by which an unseen token is assumed to be less likely than the last one shown. Log-probabilities are stored with
six digits, and if a bound equalled a label's probability, neither would be the likelier one."""
EXACT = 0.01
"""A log-probability counts as exact if its uncertainty, from an unseen longer label, is at most this many nats."""
SHARED = 0.01
"""If a first token that begins two labels is likelier than this, a chat cannot tell them apart."""
Path = tuple[bytes, ...]
"""The bytes of consecutive tokens."""
Next = Callable[[Path], Awaitable[Position | None]]
"""Tokens → the distribution of the token after the view and these; None if the server cannot be asked for it."""


@dataclass(frozen=True)
class Label:
    """A label to score.

    words: as they follow the text that is sent. tokens: those of the words, if the tokenizer is known. starts: in a
    chat, the tokens that may be the first one, if the tokenizer is known.
    """

    name: str
    words: bytes
    tokens: Path | None = None
    starts: Path = ()

    def next(self, prefix: bytes, position: Position) -> tuple[bytes, float] | None:
        """Return the token that continues the words after ``prefix``, and its log-probability, or None if it is not
        shown.

        It is the tokenizer's, or else the longest token that begins the rest.
        """
        if self.tokens is not None:
            place = 0
            while prefix:
                prefix, place = prefix[len(self.tokens[place]) :], place + 1
            fitting = [entry for entry in position.top if entry[0] == self.tokens[place]]
        else:
            rest = self.words[len(prefix) :]
            fitting = [entry for entry in position.top if entry[0] and rest.startswith(entry[0])]
        return max(fitting, key=lambda entry: len(entry[0]), default=None)

    def first(self, position: Position) -> tuple[bytes, float] | None:
        """Return the token that begins the words in a chat, with or without a space before it, or None if it is not
        shown."""
        if self.starts:
            fitting = [entry for entry in position.top if entry[0] in self.starts]
            return max(fitting, key=lambda entry: entry[1], default=None)
        spaced = b" " + self.words
        fitting = [
            entry
            for entry in position.top
            if entry[0].strip() and (spaced.startswith(entry[0]) or self.words.startswith(entry[0]))
        ]
        return max(fitting, key=lambda entry: (len(entry[0].strip()), entry[1]), default=None)

    def path(self, shown: Path) -> Path:
        """Return its tokens, of which ``shown`` are known; without the tokenizer the rest of the words is one token."""
        left = self.words[sum(map(len, shown)) :]
        return self.tokens or (*shown, *([left] if left else []))


@dataclass(frozen=True)
class Begun:
    """The probability that a text begins with a label.

    log_prob: that, or an upper bound. path: the label's tokens. asked: whether the server could be asked for all of
    them.
    """

    log_prob: float
    seen: bool
    path: Path
    asked: bool = True


@dataclass(frozen=True)
class RowScores:
    """One row's scores. log_probs: float32 [K]. seen: bool [K], False for upper bounds. mass: Σ Pr over the labels
    seen."""

    log_probs: np.ndarray
    seen: np.ndarray
    mass: float

    @property
    def measured(self) -> bool:
        """Tell whether the likeliest label is known."""
        return bool(measured(self.log_probs[None], self.seen[None])[0])


def check_differ(labels: Sequence[Label], *, first_only: bool) -> None:
    """Raise RecipeError if two labels have the same tokens or, with ``first_only`` (a chat), the same first token."""
    taken: dict[Path, Label] = {}
    for label in labels:
        for key in [(start,) for start in label.starts] if first_only else [label.tokens] if label.tokens else []:
            other = taken.setdefault(key, label)
            if other is not label and first_only:
                raise shared(other, label, key[0])
            if other is not label:
                problem = f"{other.name} and {label.name} are the same tokens, {label.words.decode(errors='replace')!r}"
                raise RecipeError(problem, where="task.labels", next="choose words that differ")


async def begun(labels: Sequence[Label], following: Next, *, first_only: bool) -> list[Begun]:
    """Return how likely a text is to begin with each label. ``following`` is called once per distinct beginning.

    first_only: ask only for the first token, whose probability then stands for the whole word's.
    """
    if first_only:
        position = await following(())
        assert position is not None
        return _by_first_token(labels, position)
    return [await _chain(label, following) for label in labels]


async def _chain(label: Label, following: Next) -> Begun:
    """Multiply the probabilities token by token.

    Without the tokenizer, a shown token may begin the word in another way than the model would write it (" a" of "
    abbreviation"). If it leads to less than an unseen token might have, that token's bound counts.
    """
    words, path, total, highest = b"", Path(), 0.0, -math.inf
    while words != label.words:
        position = await following(path)
        if position is None:
            return Begun(max(total, highest), False, label.path(path), asked=False)
        step = label.next(words, position)
        if label.tokens is None or step is None:
            highest = max(highest, total + bound(position))
        if step is None:
            return Begun(highest, False, label.path(path))
        words, path, total = words + step[0], (*path, step[0]), total + step[1]
    return Begun(max(total, highest), total >= highest, path)


def _by_first_token(labels: Sequence[Label], position: Position) -> list[Begun]:
    steps, highest = [label.first(position) for label in labels], bound(position)
    results = []
    for k, (label, step) in enumerate(zip(labels, steps, strict=True)):
        others = (j for j, rival in enumerate(steps) if step and j != k and rival and rival[0] == step[0])
        other = next(others, None)
        if step is None:
            results.append(Begun(highest, False, label.path(())))
        elif other is None:
            results.append(Begun(step[1], True, (step[0],)))
        elif math.exp(step[1]) > SHARED:
            raise shared(labels[other], label, step[0])
        else:  # an unlikely letter that begins both words
            results.append(Begun(max(step[1], highest), False, label.path(())))
    return results


def scores(labels: Sequence[Begun]) -> RowScores:
    """Return the labels' own probabilities, by subtracting longer labels from those that begin them.

    A longer label may be unseen, with anything from nothing to its upper bound. If that leaves the shorter one
    uncertain, it is an upper bound as well.
    """
    log_probs = np.array([label.log_prob for label in labels])
    seen, paths = np.array([label.seen for label in labels]), [label.path for label in labels]
    lowest = exclusive(log_probs[None], paths)[0]
    highest = log_probs.astype(np.float32)
    highest[seen] = exclusive(
        log_probs[seen][None], [path for path, is_seen in zip(paths, seen, strict=True) if is_seen]
    )[0]
    exact = seen & (highest - lowest <= EXACT)
    bounds = np.where(exact, lowest, highest)
    return RowScores(bounds, exact, float(np.exp(bounds[exact].astype(np.float64)).sum()))


def bound(position: Position) -> float:
    """Return the log of the largest probability that an unseen token can have."""
    return min(position.top[-1][1] - BELOW, math.log(max(position.left, LEAST)))


def shared(label: Label, other: Label, token: bytes) -> RecipeError:
    """Return the error for two labels that a chat cannot tell apart."""
    return RecipeError(
        f"{label.name} and {other.name} begin with the same token, {token.decode(errors='replace')!r}, and in a chat "
        "only the first one can be requested",
        where="task.labels",
        next="choose words that begin differently, or use teacher.api: completions",
    )
