"""Where the rows are."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distillctl import limits
from distillctl.recipe.base import Closed, Count, Seed


class Data(Closed):
    """Where the rows are. ``source`` is split by a seed; or name ``train`` and ``eval`` apart."""

    source: str | tuple[str, ...] | None = None
    """A file, `package:NAME/path`, or a hub data set id; or a list of files, read one after the other."""
    train: str | None = None
    """A file for the train split; with a hub `source`, the name of its train split."""
    eval: str | None = None
    subset: str | None = None
    """Of a hub data set that has several, the configuration to read."""
    format: Literal["auto", "lines", "jsonl", "csv", "tsv", "parquet", "gettext", "hub"] = "auto"
    encoding: str = "utf-8"
    pattern: str | None = None
    """For `lines`: a regular expression whose named groups are the columns."""
    language: str | tuple[str, ...] | None = None
    """For `gettext`: in folders, LANGUAGE/LC_MESSAGES/*.po are read; several may be named, such as [fr, fr_FR]."""
    exclude: str | None = None
    """A regular expression: rows whose input it finds are left out."""
    input: str = "input"
    """Column of the input."""
    reference: str | None = None
    """Column of the reference; when not given, `reference` is used if it is there."""
    id: str | None = None
    """Column of the id; derived from the input when not given."""
    documents: str | None = None
    """Column with the row's documents (text or a list), for the full context."""
    label_map: dict[str, str] = {}
    """Value of the reference column → label name."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows whose input was seen before, spaces aside."""
    train_rows: Count | None = None
    eval_rows: Count | None = None
    """Of a single `source`: so many rows are held out (default: a fifth)."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_way(self) -> Data:
        if self.source is None and (self.train is None or self.eval is None):
            raise ValueError("give `source`, or both `train` and `eval`")
        if self.source is not None and (self.train is None) != (self.eval is None):
            raise ValueError("name both splits, `train` and `eval`, or neither")
        if self.source is not None and self.train is not None and self.format != "hub":
            raise ValueError("give `source`, or `train` and `eval`; with `format: hub` they name its splits")
        if self.subset is not None and self.format != "hub":
            raise ValueError("`subset` belongs to a hub data set: `format: hub`")
        if self.format == "gettext" and not self.languages:
            raise ValueError("format gettext needs a `language`, such as fr")
        try:
            limits.pattern(self.exclude or "")
        except ValueError as error:
            raise ValueError(f"exclude is not a regular expression: {error}") from None
        if self.pattern is not None:
            try:
                groups = limits.pattern(self.pattern).groupindex
            except ValueError as error:
                raise ValueError(f"pattern is not a regular expression: {error}") from None
            if self.input not in groups:
                raise ValueError(f"pattern has no group (?P<{self.input}>…)")
        if self.format == "hub" and self.train is not None and len(self.sources) != 1:
            raise ValueError("`train` and `eval` name splits of one hub `source`")
        if self.format == "lines" and self.pattern is None:
            raise ValueError("format lines needs a `pattern`")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """`source` as a list; empty when train and eval are named apart."""
        return (self.source,) if isinstance(self.source, str) else self.source or ()

    @property
    def languages(self) -> tuple[str, ...]:
        """`language` as a list."""
        return (self.language,) if isinstance(self.language, str) else self.language or ()
