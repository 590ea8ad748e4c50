"""Cut the end of an input whose view is too long, so that the view around it stays whole.

Cutting the end of the view would lose the template's text after the input, such as the question. `collect` decides how
much of each input is kept, once for all contexts and the student, so that all arms read the same input.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from distillctl.data.rows import Example
from distillctl.errors import DataError

_PARTIAL_WORD = 40
"""Longest part of a divided word that is dropped as well, in characters; longer runs without spaces are not words."""

Rendered = TypeVar("Rendered")


@dataclass(frozen=True)
class Limit:
    """The longest view that a model can read.

    who: "the teacher" or "the student". tokens: of the view, without the room for the answer. description: the limit in
    words, which continues "the view has 90 tokens, ".
    """

    who: str
    tokens: int
    description: str
    next: str = "shorten the context, or set contexts.truncate: input"


@dataclass(frozen=True)
class Length:
    """The length of one view of a row. where: the recipe's key of its context. view: its name in messages."""

    tokens: int
    limit: Limit
    where: str
    view: str = "view"

    @property
    def excess(self) -> int:
        """Return the tokens beyond the limit; not positive if the view fits."""
        return self.tokens - self.limit.tokens

    def error(self, row: str, others: int = 0) -> DataError:
        """Return the error for a row that may not be cut. others: number of further rows that are too long."""
        more = "1 more row is" if others == 1 else f"{others:,} more rows are"
        also = f" ({more} too long)" if others else ""
        return DataError(
            f"row {row}: the {self.view} has {self.tokens:,} tokens, {self.limit.description}{also}",
            where=self.where,
            next=self.limit.next,
        )


def longest(lengths: Sequence[Length]) -> Length | None:
    """Return the view that is furthest beyond its limit, or None if all views fit."""
    worst = max(lengths, key=lambda length: length.excess, default=None)
    return worst if worst is not None and worst.excess > 0 else None


def cut_to_fit(text: str, fits: Callable[[str], bool]) -> str | None:
    """Return the longest beginning of ``text`` that fits, without a partial word, or None if not even one letter fits.

    ``text`` itself does not fit. ``fits`` is called about log2(len(text)) times. Token counts may fall by one or two
    where a text grows, so a slightly longer beginning may fit as well; the result always does.
    """
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle].rstrip()) else (low, middle)
    for end in (_word_boundary(text, low), low):
        kept = text[:end].rstrip()
        if kept and fits(kept):
            return kept
    return None


def fit(
    example: Example, render: Callable[[Example], Rendered], lengths: Callable[[Rendered], Sequence[Length]]
) -> tuple[Example, Rendered]:
    """Return the example, its input cut so that all views fit, and its rendered views.

    ``lengths`` measures what ``render`` returns. Raises DataError if the views are too long around any input.
    """
    rendered = render(example)
    if (too_long := longest(lengths(rendered))) is None:
        return example, rendered

    def fits(text: str) -> bool:
        return longest(lengths(render(_with_input(example, text)))) is None

    kept = cut_to_fit(example.input, fits)
    if kept is None:
        raise DataError(
            f"row {example.id}: the {too_long.view} has {too_long.tokens:,} tokens, {too_long.limit.description}, and "
            "cutting its input does not help",
            where=too_long.where,
            next="shorten the context, or remove the row",
        )
    shorter = _with_input(example, kept)
    return shorter, render(shorter)


def _with_input(example: Example, text: str) -> Example:
    """Return the example with another input, also in the input's column."""
    columns = {name: text if value == example.input else value for name, value in example.columns.items()}
    return replace(example, input=text, columns=columns)


def _word_boundary(text: str, end: int) -> int:
    """Return the end of the last whole word of ``text[:end]``, or ``end`` if no word ends nearby."""
    while 0 < end < len(text) and (unicodedata.combining(text[end]) or "\u200d" in (text[end], text[end - 1])):
        end -= 1  # keep accents and the parts of an emoji together
    if end == len(text) or text[end].isspace():
        return end
    start = max(0, end - _PARTIAL_WORD)
    spaces = (place for place in range(end - 1, start, -1) if text[place].isspace())
    return next(spaces, end)
