"""Read every context's templates, and find the columns of the data that they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
from jinja2 import nodes

from distillctl.errors import DataError, RecipeError, first_line
from distillctl.models import model_source
from distillctl.recipe import Context, Recipe
from distillctl.untrusted import limits
from distillctl.untrusted.templates import Sandbox

SANDBOX = Sandbox(
    null="",
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Renders contexts. A null becomes an empty text, like an empty cell of a table."""

FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError,
    MemoryError, SyntaxError, AssertionError,
)  # fmt: skip
"""Errors that a template's own mistakes can raise through Jinja."""

BUILT_IN = frozenset({"input", "examples", "documents", "labels", "row"})
"""Variables that every template has; a column with such a name is in `row`."""


@dataclass(frozen=True)
class Source:
    """One template. where: its key in the recipe. each: the items for which its message is repeated."""

    where: str
    text: str
    each: str | None = None


def contexts(recipe: Recipe) -> dict[str, tuple[str, Context]]:
    """Return name → each context's key in the recipe, and the context."""
    section = recipe.contexts
    named = {"full": section.full, "simplified": section.simplified}
    return {name: (f"contexts.{name}", context) for name, context in named.items()} | {
        name: (f"contexts.arms.{name}", context) for name, context in section.arms.items()
    }


def sources(recipe: Recipe, where: str, context: Context) -> list[Source]:
    """Return a context's template, or one per message. Raise DataError if its file cannot be read."""
    if context.template is not None:
        return [Source(where, context.template)]
    if context.template_file is not None:
        try:
            path = recipe.folder / context.template_file
            model_source.check_is_data(path, where=f"{where}.template_file")
            data = limits.read_bytes(path, limits.TEXT_BYTES)
            return [Source(where, data.decode("utf-8-sig"))]
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", where=f"{where}.template_file") from None
    return [
        Source(f"{where}.messages[{index}]", message.content, message.each)
        for index, message in enumerate(context.messages or ())
    ]


def refused(error: BaseException, source: Source) -> RecipeError:
    """Return the error for a template that cannot be compiled."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return RecipeError(f"line {error.lineno} of the template: {error.message}", where=source.where)
    return RecipeError(f"the template cannot be compiled: {reason(error)}", where=source.where)


def reason(error: BaseException) -> str:
    """Return the problem of a template in one line."""
    if isinstance(error, limits.TimeBudgetExceeded):
        return "it takes too long"
    return first_line(error)[:300]  # a template may raise a text of any length


# ── columns ──────────────────────────────────────────────────────────────────────────────────────


def by_name(columns: Mapping[str, object]) -> dict[str, Any]:
    """Return the columns that are variables themselves: all but those named like Jinja's functions, such as `range`."""
    return {name: value for name, value in columns.items() if name not in SANDBOX.globals}


@dataclass(frozen=True)
class UsedColumns:
    """The columns that templates use."""

    needed: Mapping[str, str] = field(default_factory=dict)
    """Name → key of a template that fails without it."""
    optional: frozenset[str] = frozenset()
    """Columns whose existence a template tests before it uses them."""
    all: bool = False
    """Whether a template uses `row` as a whole."""
    of_examples: frozenset[str] = frozenset()
    """Columns that only few-shot examples use."""
    all_of_examples: bool = False

    def shows(self, name: str) -> bool:
        """Tell whether a view may show this column of its own row."""
        return self.all or name in self.needed or name in self.optional

    def wants(self, name: str) -> bool:
        """Tell whether a column must be kept, for views or for few-shot examples."""
        return self.shows(name) or self.all_of_examples or name in self.of_examples

    @property
    def wanted(self) -> frozenset[str] | None:
        """Return the columns that must be kept, or None for all."""
        known = self.optional | self.of_examples | frozenset(self.needed)
        return None if self.all or self.all_of_examples else known

    def __or__(self, other: UsedColumns) -> UsedColumns:
        return UsedColumns(
            {**other.needed, **self.needed},
            self.optional | other.optional,
            self.all or other.all,
            self.of_examples | other.of_examples,
            self.all_of_examples or other.all_of_examples,
        )


def columns(recipe: Recipe) -> dict[str, UsedColumns]:
    """Return context → the columns its templates use. Raise RecipeError if one cannot be compiled."""
    time = limits.TimeBudget()
    by_context = {}
    for name, (where, context) in contexts(recipe).items():
        used = UsedColumns()
        for source in sources(recipe, where, context):
            try:
                with time:
                    used |= _used(source)
            except (*FAILURES, limits.TimeBudgetExceeded) as error:
                raise refused(error, source) from None
        by_context[name] = used
    return by_context


def _used(source: Source) -> UsedColumns:
    tree, undeclared = SANDBOX.variables(source.text)
    of_row, whole = _of_row(tree) if "row" in undeclared else (set(), False)
    names = of_row | (undeclared - BUILT_IN - SANDBOX.globals.keys() - {source.each})
    optional = names.intersection(_tested_columns(tree))
    of_examples: set[str] = set()
    if "examples" in undeclared or source.each == "example":
        of_examples = set(_attributes(tree)) - {"input", "answer"}
    return UsedColumns(
        dict.fromkeys(sorted(names - optional), source.where),
        frozenset(optional),
        whole,
        frozenset(of_examples - {"row"}),
        "row" in of_examples,
    )


def _of_row(tree: nodes.Template) -> tuple[set[str], bool]:
    """Return the columns in `row.title` and `row["title"]`, and whether `row` is used in another way."""
    names = [name for node in tree.find_all((nodes.Getattr, nodes.Getitem)) if (name := _column_of(node)) is not None]
    return set(names), sum(node.name == "row" for node in tree.find_all(nodes.Name)) > len(names)


def _column_of(node: nodes.Node) -> str | None:
    """Return the column that `row.title` or `row["title"]` reads. `row.items` may be the method, which reads all."""
    if isinstance(node, nodes.Getattr) and _is_name(node.node, "row"):
        return None if hasattr(dict, node.attr) else node.attr
    if isinstance(node, nodes.Getitem) and _is_name(node.node, "row") and isinstance(node.arg, nodes.Const):
        return node.arg.value if isinstance(node.arg.value, str) else None
    return None


def _tested_columns(tree: nodes.Template) -> Iterator[str]:
    """Yield the columns in `title is defined` and `title | default("")`."""
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        if node.name in ("defined", "undefined", "default", "d") and node.node is not None:
            name = node.node.name if isinstance(node.node, nodes.Name) else _column_of(node.node)
            if name is not None:
                yield name


def _attributes(tree: nodes.Template) -> Iterator[str]:
    """Yield every name after a dot or in brackets, which may be a column of an example."""
    for node in tree.find_all(nodes.Getattr):
        yield node.attr
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name
