"""Turn an input into a graph's token ids as apps do: with the template around it, and within the limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from distillctl.data import view_template
from distillctl.data.view_table import ViewTable
from distillctl.data.view_template import ViewTemplate
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import StudentFacts

_PROBES = ("a", "A", "0", "x1", "ab", ".", "é", "中")
_LONGEST = 2**31 - 1


@dataclass(frozen=True)
class Reading:
    """Turn inputs into token ids.

    template: makes an input's view. limit: maximal number of a view's tokens. folder: the graph's, with tokenizer.json.
    """

    template: ViewTemplate
    limit: int
    folder: Path

    @classmethod
    def of(cls, recipe: Recipe, rows: ViewTable, train: StudentFacts, folder: Path) -> Reading:
        """Make the reading for the graph in ``folder``. A decoder's view leaves room for its answer."""
        limit = train.max_length
        if recipe.task.response_tokens and not train.encoder_decoder:
            limit -= recipe.task.response_tokens
        return cls(view_template.of(recipe, rows), min(limit, _LONGEST), folder)

    @cached_property
    def tail(self) -> list[int] | None:
        """Return the ids that end every view: the template's suffix and special tokens.

        None if the input always shares a token with the suffix, or if the template is not text around the input.
        """
        if self.template.form != "text":
            return None
        for probe in _PROBES:
            begins = len(self.template.prefix or "") + len(probe)
            ids = _after(self.tokenizer.encode(self.template.view(probe)), begins)
            if ids is not None:
                return ids if len(ids) < self.limit else None
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer without padding and truncation."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the token ids of an input's view, as the snippets do.

        If they are too many, the end of the input is cut, or ValueError is raised if that is impossible.
        """
        return self.fit(self.tokenizer.encode(self.template.view(text)).ids)

    def takes(self, view: str) -> bool:
        """Tell whether a view is short enough."""
        return len(self.tokenizer.encode(view).ids) <= self.limit

    def fit(self, ids: list[int]) -> list[int]:
        """Return a view's ids, with the end of its input cut if they are too many."""
        if len(ids) <= self.limit:
            return ids
        if self.tail is None:
            raise ValueError(f"the view has {len(ids)} tokens, and the model takes {self.limit}")
        return [*ids[: self.limit - len(self.tail)], *self.tail]


def _after(encoding: Encoding, place: int) -> list[int] | None:
    """Return the ids after character ``place``, or None if a token covers both sides of it."""
    first = len(encoding.ids)
    while first and (encoding.special_tokens_mask[first - 1] or encoding.offsets[first - 1][0] >= place):
        first -= 1
    if first and encoding.offsets[first - 1][1] > place:
        return None
    ids: list[int] = encoding.ids[first:]
    return ids
