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
from distillctl.soft_labels.labels import measured
from distillctl.teachers.exclusive import exclusive
from distillctl.teachers.openai.protocol import Position

LEAST = 1e-9
"""A mass that is left below is the rounding of float32."""
BELOW = 1e-5
"""Nats by which an unseen token is taken to be less likely than the last one shown: log-probabilities are kept to six
digits, and a bound that equals a label's own probability would leave open which of the two is likelier."""
EXACT = 0.01
"""Nats that a log-probability may be uncertain by and still count as exact, where a longer label begins with the words
and is itself unseen."""
SHARED = 0.01
"""A first token that begins two labels and is likelier than that leaves a chat no way to tell them apart."""
Path = tuple[bytes, ...]
"""Tokens."""
Next = Callable[[Path], Awaitable[Position | None]]
"""The distribution of the token after the view and these; None where the server cannot be asked for that."""


@dataclass(frozen=True)
class Label:
    """words: as they follow what is sent of the view; tokens: where the tokenizer is known, those of the words; starts:
    of a chat, the tokens that may be the first one, where the tokenizer is known."""

    name: str
    words: bytes
    tokens: Path | None = None
    starts: Path = ()

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

    def first(self, position: Position) -> tuple[bytes, float] | None:
        """The token that begins the words in a chat, with a space before it or without, if it is shown."""
        if self.starts:
            fitting = [one for one in position.top if one[0] in self.starts]
            return max(fitting, key=lambda one: one[1], default=None)
        spaced = b" " + self.words
        fitting = [
            one
            for one in position.top
            if one[0].strip() and (spaced.startswith(one[0]) or self.words.startswith(one[0]))
        ]
        return max(fitting, key=lambda one: (len(one[0].strip()), one[1]), default=None)

    def path(self, said: Path) -> Path:
        """Its tokens, of which ``said`` were shown; without the tokenizer what is left of the words stands for one."""
        left = self.words[sum(map(len, said)) :]
        return self.tokens or (*said, *([left] if left else []))


@dataclass(frozen=True)
class Begun:
    """log_prob: of a text that begins with the label's tokens, or an upper bound of it; path: those tokens; asked:
    whether the server could be asked for all of them one after the other."""

    log_prob: float
    seen: bool
    path: Path
    asked: bool = True


@dataclass(frozen=True)
class RowScores:
    """Of one row: log_probs float32 [K]; seen bool [K], False for upper bounds; mass: Σ Pr over the labels seen."""

    log_probs: np.ndarray
    seen: np.ndarray
    mass: float

    @property
    def measured(self) -> bool:
        """Whether the likeliest label is known."""
        return bool(measured(self.log_probs[None], self.seen[None])[0])


def check_differ(labels: Sequence[Label], *, first_only: bool) -> None:
    """RecipeError where two labels are the same tokens, or, ``first_only`` (a chat), begin with the same one."""
    taken: dict[Path, Label] = {}
    for label in labels:
        for key in [(start,) for start in label.starts] if first_only else [label.tokens] if label.tokens else []:
            other = taken.setdefault(key, label)
            if other is not label and first_only:
                raise shared(other, label, key[0])
            if other is not label:
                what = f"{other.name} and {label.name} are the same tokens, {label.words.decode(errors='replace')!r}"
                raise RecipeError(what, where="task.labels", next="choose words that differ")


async def begun(labels: Sequence[Label], following: Next, *, first_only: bool) -> list[Begun]:
    """How likely a text is to begin with each label. ``following`` is asked once per distinct beginning;
    ``first_only``: for nothing but the first token, whose probability then stands for the whole word's."""
    if first_only:
        position = await following(())
        assert position is not None
        return _by_first_token(labels, position)
    return [await _chain(label, following) for label in labels]


async def _chain(label: Label, following: Next) -> Begun:
    """Token by token.

    Without the tokenizer a beginning may be shown that is not the model's own way to write the word (" a" of
    " abbreviation"): where it leads to less than a token that is not shown might have, that bound is what counts.
    """
    said, path, total, highest = b"", Path(), 0.0, -math.inf
    while said != label.words:
        position = await following(path)
        if position is None:
            return Begun(max(total, highest), False, label.path(path), asked=False)
        step = label.next(said, position)
        if label.tokens is None or step is None:
            highest = max(highest, total + bound(position))
        if step is None:
            return Begun(highest, False, label.path(path))
        said, path, total = said + step[0], (*path, step[0]), total + step[1]
    return Begun(max(total, highest), total >= highest, path)


def _by_first_token(labels: Sequence[Label], position: Position) -> list[Begun]:
    steps, highest = [label.first(position) for label in labels], bound(position)
    found = []
    for k, (label, step) in enumerate(zip(labels, steps, strict=True)):
        other = next((j for j, one in enumerate(steps) if step and j != k and one and one[0] == step[0]), None)
        if step is None:
            found.append(Begun(highest, False, label.path(())))
        elif other is None:
            found.append(Begun(step[1], True, (step[0],)))
        elif math.exp(step[1]) > SHARED:
            raise shared(labels[other], label, step[0])
        else:  # a letter that begins both words, and how the model begins neither
            found.append(Begun(max(step[1], highest), False, label.path(())))
    return found


def scores(found: Sequence[Begun]) -> RowScores:
    """The labels' own probabilities: what a longer label has is taken off one that begins it.

    The longer label may be unseen, and have anything from nothing to its upper bound. Where that leaves the shorter one
    uncertain, it is an upper bound as well.
    """
    log_probs = np.array([one.log_prob for one in found])
    seen, paths = np.array([one.seen for one in found]), [one.path for one in found]
    lowest = exclusive(log_probs[None], paths)[0]
    highest = log_probs.astype(np.float32)
    highest[seen] = exclusive(log_probs[seen][None], [path for path, own in zip(paths, seen, strict=True) if own])[0]
    exact = seen & (highest - lowest <= EXACT)
    own = np.where(exact, lowest, highest)
    return RowScores(own, exact, float(np.exp(own[exact].astype(np.float64)).sum()))


def bound(position: Position) -> float:
    """The log of the most that a token which is not shown can have."""
    return min(position.top[-1][1] - BELOW, math.log(max(position.left, LEAST)))


def shared(one: Label, other: Label, token: bytes) -> RecipeError:
    """That a chat cannot tell two labels apart."""
    return RecipeError(
        f"{one.name} and {other.name} begin with the same token, {token.decode(errors='replace')!r}, and in a chat "
        "only the first one can be asked for",
        where="task.labels",
        next="choose words that begin differently, or use teacher.api: completions",
    )
