"""The section about the rows: their files and formats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distillctl.recipe.base import Count, Section, Seed
from distillctl.untrusted import limits


class Data(Section):
    """The rows. Name one `source`, which a seed splits, or both `train` and `eval`."""

    source: Annotated[
        str | tuple[str, ...] | None,
        Field(examples=["messages.jsonl", "package:NAME/path", "fancyzhx/amazon_polarity", ["a.csv", "b.csv"]]),
    ] = None
    """A file, `package:NAME/path`, or the id of a hub data set; or a list of files, which are read one after the other.
    Files may be gzipped."""
    train: Annotated[str | None, Field(examples=["train.jsonl"])] = None
    """A file for the train split; or, with a hub `source`, the name of its train split."""
    eval: Annotated[str | None, Field(examples=["eval.jsonl"])] = None
    """A file for the held-out rows; or, with a hub `source`, the name of that split."""
    subset: Annotated[str | None, Field(examples=["en-fr"])] = None
    """Configuration of a hub data set, if it has several."""
    format: Literal["auto", "lines", "jsonl", "csv", "tsv", "parquet", "gettext", "hub"] = "auto"
    """How to read the source. `auto` goes by the file's name; write `hub` for a hub data set."""
    encoding: Annotated[str, Field(examples=["latin-1"])] = "utf-8"
    """Encoding of text files. A byte-order mark at the beginning of a file is dropped."""
    delimiter: Annotated[Annotated[str, Field(min_length=1, max_length=1)] | None, Field(examples=[";"])] = None
    """Character between the cells of a csv or tsv file. Without it: a comma in csv, a tab in tsv."""
    quoting: Literal["auto", "on", "off"] = "auto"
    """Whether double quotes hold a cell of a table together. `auto` is `on` for csv and `off` for tsv."""
    pattern: Annotated[str | None, Field(examples=["(?P<reference>[A-Z]+): (?P<input>.+)"])] = None
    """For `format: lines`: a regular expression whose named groups become the columns."""
    language: Annotated[str | tuple[str, ...] | None, Field(examples=["fr", ["fr", "fr_FR"]])] = None
    """For `format: gettext`: the language, or several. In a folder, LANGUAGE/LC_MESSAGES/*.po are read."""
    exclude: Annotated[str | None, Field(examples=["^.{121,}$"])] = None
    """Leave out rows whose input this regular expression finds. It sees blank inputs, too."""
    blank: Literal["error", "drop"] = "error"
    """What to do with a row whose input is blank or missing: stop and name it, or leave it out and count it."""
    unreferenced: Literal["keep", "drop"] = "keep"
    """What to do with a row that has no reference: keep it, or leave it out and count it."""
    input: Annotated[str, Field(examples=["request.messages[0].content"])] = "input"
    """Column of the input, or a path into nested JSON."""
    reference: Annotated[str | None, Field(examples=["label"])] = None
    """Column (or path) of the reference, used only to evaluate. Without it, the column `reference`, if there is one."""
    id: Annotated[str | None, Field(examples=["id"])] = None
    """Column (or path) of the id. Without it, an id is derived from the input."""
    documents: Annotated[str | None, Field(examples=["articles"])] = None
    """Column (or path) of the row's documents, a text or a list, for the full context."""
    label_map: Annotated[dict[str, str], Field(examples=[{"HUM": "person"}])] = {}
    """Maps values of the reference column to label names."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What to do with a row that looks like an earlier one to the student, apart from spaces."""
    train_rows: Annotated[Count | None, Field(examples=[1800])] = None
    """Number of train rows to draw by the seed. Without it, all that are left."""
    eval_rows: Annotated[Count | None, Field(examples=[1000])] = None
    """Number of held-out rows to draw by the seed. Without it, a fifth of a single `source`, or all of `eval`. Of a
    `source`, rows that have a reference are taken first."""
    seed: Seed = 0
    """Seed of the order in which rows are drawn. A row keeps its place when others come or go."""

    @field_validator("quoting", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: object) -> Any:
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
        """Return `source` as a list; empty if train and eval are named separately."""
        return (self.source,) if isinstance(self.source, str) else self.source or ()

    @property
    def languages(self) -> tuple[str, ...]:
        """Return `language` as a list."""
        return (self.language,) if isinstance(self.language, str) else self.language or ()
