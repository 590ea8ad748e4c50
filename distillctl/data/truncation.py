"""The one rule for a row whose view is too long: the end of its input is cut, so that the view around it stays whole.

Cutting the end of a view would lose what the template writes after the input, such as the question. `collect` decides
how much of each input is kept, once for every context and for the student, so that all arms read the same input.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from distillctl.data.rows import Example
from distillctl.errors import DataError

_PARTIAL_WORD = 40
"""Characters of a word that is cut in two which are dropped as well; a longer run without spaces is no word."""

Rendered = TypeVar("Rendered")


@dataclass(frozen=True)
class Limit:
    """The longest view that a model can read.

    who: "the teacher" or "the student"; tokens: of the view, after the answer's or response's room was taken off;
    told: the same in words, to go on after "the view has 90 tokens, ".
    """

    who: str
    tokens: int
    told: str
    next: str = "shorten the context, or set contexts.truncate: input"


@dataclass(frozen=True)
class Length:
    """How long one view of a row is. where: the recipe's key of its context; view: what to call it in a message."""

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
            f"row {row}: the {self.view} has {self.tokens:,} tokens, {self.limit.told}{also}",
            where=self.where,
            next=self.limit.next,
        )


def longest(lengths: Sequence[Length]) -> Length | None:
    """Return the view that is furthest beyond its limit, or None if all views fit."""
    found = max(lengths, key=lambda one: one.excess, default=None)
    return found if found is not None and found.excess > 0 else None


def cut_to_fit(text: str, fits: Callable[[str], bool]) -> str | None:
    """Return the longest beginning of ``text`` that fits, without a partial word; None where not even one letter does.

    ``text`` itself is known not to fit. ``fits`` is asked about log2(len(text)) times. Token counts may fall by one or
    two where a text grows, so a slightly longer beginning may fit as well; what is returned always does.
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
    """Return the example, its input cut so that all of its views fit, and what ``render`` made of it.

    ``lengths`` measures what ``render`` returns. DataError where the views do not fit around any input.
    """
    rendered = render(example)
    if (too_long := longest(lengths(rendered))) is None:
        return example, rendered

    def fits(text: str) -> bool:
        return longest(lengths(render(_with_input(example, text)))) is None

    kept = cut_to_fit(example.input, fits)
    if kept is None:
        raise DataError(
            f"row {example.id}: the {too_long.view} has {too_long.tokens:,} tokens, {too_long.limit.told}; it is too "
            "long whatever is cut from its input",
            where=too_long.where,
            next="shorten the context, or leave the row out",
        )
    shorter = _with_input(example, kept)
    return shorter, render(shorter)


def _with_input(example: Example, text: str) -> Example:
    """Return the example with another input, also in the input's column."""
    columns = {name: text if value == example.input else value for name, value in example.columns.items()}
    return replace(example, input=text, columns=columns)


def _word_boundary(text: str, end: int) -> int:
    """The end of the last whole word of ``text[:end]``, or ``end`` where no word ends nearby."""
    while 0 < end < len(text) and (unicodedata.combining(text[end]) or "\u200d" in (text[end], text[end - 1])):
        end -= 1  # an accent, or the parts of one emoji, belong together
    if end == len(text) or text[end].isspace():
        return end
    start = max(0, end - _PARTIAL_WORD)
    spaces = (place for place in range(end - 1, start, -1) if text[place].isspace())
    return next(spaces, end)
