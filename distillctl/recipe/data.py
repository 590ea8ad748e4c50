"""Where the rows are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distillctl.recipe.base import Closed, Count, Seed
from distillctl.untrusted import limits


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
    """A byte-order mark at the beginning of a file is dropped."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What stands between the cells of a csv or tsv file (default: a comma, a tab)."""
    quoting: Literal["auto", "on", "off"] = "auto"
    """Whether double quotes hold a cell of a table together; auto: on for csv, off for tsv."""
    pattern: str | None = None
    """For `lines`: a regular expression whose named groups are the columns."""
    language: str | tuple[str, ...] | None = None
    """For `gettext`: in folders, LANGUAGE/LC_MESSAGES/*.po are read; several may be named, such as [fr, fr_FR]."""
    exclude: str | None = None
    """A regular expression: rows whose input it finds are left out; it sees blank inputs, too."""
    blank: Literal["error", "drop"] = "error"
    """What to do with a row whose input is blank or missing: stop and name it, or leave it out and count it."""
    input: str = "input"
    """Column of the input, or a path into nested JSON, such as request.messages[0].content; so are the next three."""
    reference: str | None = None
    """Column of the reference; when not given, `reference` is used if it is there."""
    id: str | None = None
    """Column of the id; derived from the input when not given."""
    documents: str | None = None
    """Column with the row's documents (text or a list), for the full context."""
    label_map: dict[str, str] = {}
    """Value of the reference column → label name."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that show the student what an earlier row showed it, spaces aside; the first one is kept."""
    train_rows: Count | None = None
    """So many rows, drawn by the seed (default: all that are left)."""
    eval_rows: Count | None = None
    """So many held-out rows, drawn by the seed (default: a fifth of a single `source`, all of `eval`)."""
    seed: Seed = 0
    """Of the order in which rows are drawn; a row keeps its place when others come or go."""

    @field_validator("quoting", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

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
        if self.delimiter is not None and self.delimiter in '"\r\n':
            raise ValueError("delimiter: a quote or a line's end does not stand between cells")
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
