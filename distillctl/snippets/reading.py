"""How an app turns an input into the token ids that a graph takes: the template around it, and the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from distillctl.data import view_template
from distillctl.data.view_table import ViewTable
from distillctl.data.view_template import ViewTemplate
from distillctl.recipe import Recipe

_PROBES = ("a", "A", "0", "x1", "ab", ".", "é", "中")
_LONGEST = 2**31 - 1


@dataclass(frozen=True)
class Reading:
    """``template`` makes the view of an input; a view may have ``limit`` tokens. folder: the graph's, with its
    tokenizer.json."""

    template: ViewTemplate
    limit: int
    folder: Path

    @classmethod
    def of(cls, recipe: Recipe, rows: ViewTable, train: Mapping[str, Any], folder: Path) -> Reading:
        """For the graph in ``folder``. train: facts of that manifest; a decoder's view leaves room for its answer."""
        limit = train["max_length"]
        if recipe.task.response_tokens and not train["encoder_decoder"]:
            limit -= recipe.task.response_tokens
        return cls(view_template.of(recipe, rows), min(limit, _LONGEST), folder)

    @cached_property
    def tail(self) -> list[int] | None:
        """The ids that end every view: those of the template's suffix, and special tokens. None where the input and
        the suffix always share a token, or where there is no suffix to speak of (the form is not `text`)."""
        if self.template.form != "text":
            return None
        for probe in _PROBES:
            begins = len(self.template.prefix or "") + len(probe)
            found = _after(self.tokenizer.encode(self.template.view(probe)), begins)
            if found is not None:
                return found if len(found) < self.limit else None
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """It neither pads nor cuts."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """As the snippets do it: the token ids of an input's view. Where these are too many, the end of the input is
        cut; ValueError where that cannot be done."""
        return self.fit(self.tokenizer.encode(self.template.view(text)).ids)

    def takes(self, view: str) -> bool:
        """Whether a view is short enough."""
        return len(self.tokenizer.encode(view).ids) <= self.limit

    def fit(self, ids: list[int]) -> list[int]:
        """The ids of a view, with the end of its input cut where they are too many."""
        if len(ids) <= self.limit:
            return ids
        if self.tail is None:
            raise ValueError(f"the view has {len(ids)} tokens, the model takes {self.limit}")
        return [*ids[: self.limit - len(self.tail)], *self.tail]


def _after(encoding: Encoding, place: int) -> list[int] | None:
    """The ids of what stands from character ``place`` on; None where a token covers both sides of it."""
    first = len(encoding.ids)
    while first and (encoding.special_tokens_mask[first - 1] or encoding.offsets[first - 1][0] >= place):
        first -= 1
    if first and encoding.offsets[first - 1][1] > place:
        return None
    ids: list[int] = encoding.ids[first:]
    return ids
