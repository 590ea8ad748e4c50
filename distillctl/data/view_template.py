"""Describe the simplified context so that an app can apply it: the text around the input of every view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from jinja2 import nodes
from pydantic import BaseModel, ConfigDict

from distillctl.data import examples, template_sources
from distillctl.data.template_sources import SANDBOX
from distillctl.data.view_table import ViewTable
from distillctl.recipe import Recipe

WHITESPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + ("\u2028\u2029\u202f\u205f\u3000")
)
"""The whitespace that Python's `str.strip` removes from every input before it is rendered."""


class ViewTemplate(BaseModel):
    """A template that turns an input into a view.

    `text`: the view is ``prefix`` + input + ``suffix``, the input without whitespace (`WHITESPACE`) at its ends.
    `jinja`: the view is the Jinja template ``source``, rendered with `input`, the ``constants``, and those columns of
    the input's row that ``variables`` names (each by its name, and all in `row`). `view`: neither describes it, so the
    app must build the view itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Literal["text", "jinja", "view"]
    prefix: str | None = None
    suffix: str | None = None
    source: str | None = None
    """The recipe's Jinja template; None if the recipe has messages."""
    variables: tuple[str, ...] = ()
    constants: dict[str, Any] = {}

    def view(self, text: str) -> str:
        """Return an input's view. Raise ValueError unless the form is `text`."""
        if self.prefix is None or self.suffix is None:
            raise ValueError(f"a template of the form {self.form} is more than text around the input")
        return f"{self.prefix}{text.strip()}{self.suffix}"


BARE = ViewTemplate(form="text", prefix="", suffix="", source="{{ input }}")
"""A template without text around the input."""


def of(recipe: Recipe, rows: ViewTable) -> ViewTemplate:
    """Describe a recipe's simplified context as it was applied to these rows.

    The form is `text` only if the template writes its input once and unchanged, whatever the input is, and if every
    row's view has the same prefix and suffix around the row's input. The rows show what a chat template and few-shot
    examples add.
    """
    where, context = template_sources.contexts(recipe)["simplified"]
    sources = template_sources.sources(recipe, where, context)
    parsed = [SANDBOX.variables(source.text) for source in sources]
    used = {name for _, names in parsed for name in names}
    columns = template_sources.columns(recipe)["simplified"]
    of_row = {*columns.needed, *columns.optional, *(["row"] if columns.all else [])}
    variables = tuple(sorted(of_row | ({"documents"} & used)))
    repeated = any(source.each == "document" for source in sources)
    source = None if context.messages is not None else sources[0].text
    if not variables and not repeated and _writes_input_once([tree for tree, _ in parsed]):
        pairs = zip(rows.input, rows.simplified, strict=True)
        if around := _around(pairs, cut=recipe.contexts.truncate == "input"):
            return ViewTemplate(form="text", prefix=around[0], suffix=around[1], source=source)
    if source is None:
        return ViewTemplate(form="view", variables=variables)
    return ViewTemplate(form="jinja", source=source, variables=variables, constants=_constants(recipe, used))


def _constants(recipe: Recipe, used: set[str]) -> dict[str, Any]:
    """Return the variables that the template uses and that are the same for all rows."""
    values = dict[str, Any]()
    if "labels" in used:
        values["labels"] = list(recipe.task.names)
    if "examples" in used:
        shots = recipe.contexts.simplified.examples
        rows = shots.rows if shots and shots.rows else examples.load(recipe).shots.get("simplified", ())
        values["examples"] = [
            {**shot.row, "row": shot.row, "input": shot.input, "answer": shot.answer} for shot in rows
        ]
    return values


# ── checks of the template ───────────────────────────────────────────────────────────────────────


def _writes_input_once(trees: Sequence[nodes.Template]) -> bool:
    """Tell whether `input` is used only once, and its text goes into the view unchanged."""
    uses = [name for tree in trees for name in tree.find_all(nodes.Name) if name.name == "input"]
    return len(uses) == 1 and any(_writes_input(tree) for tree in trees)


def _writes_input(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Name):
        return node.name == "input"
    if isinstance(node, nodes.Filter):  # the input has no whitespace at its ends to be trimmed
        plain = node.name in ("trim", "string") and not (node.args or node.kwargs)
        return plain and node.node is not None and _writes_input(node.node)
    return any(_writes_input(part) for part in _written(node))


def _written(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield the parts of a node that are written one after the other as they are."""
    if isinstance(node, nodes.If):
        yield from (*node.body, *node.elif_, *node.else_)
    elif isinstance(node, (nodes.Template, nodes.Scope)):
        yield from node.body
    elif isinstance(node, (nodes.Output, nodes.Concat)):
        yield from node.nodes
    elif isinstance(node, nodes.Add):
        yield from (node.left, node.right)


def _around(pairs: Iterable[tuple[str, str]], *, cut: bool) -> tuple[str, str] | None:
    """Return the (prefix, suffix) of all views, or None. cut: the end of an input may be missing."""
    candidates: list[tuple[str, str]] = []
    for text, view in pairs:
        whole = candidates or [(view[:at], view[at + len(text) :]) for at in _places(text, view)]
        kept = [(prefix, suffix) for prefix, suffix in whole if f"{prefix}{text}{suffix}" == view]
        if not kept and not cut:
            return None
        shorter = [pair for pair in candidates if view.startswith(pair[0]) and view.endswith(pair[1])]
        if candidates and not (kept or shorter):
            return None
        candidates = kept or shorter
    return candidates[0] if candidates else None


def _places(text: str, view: str) -> Iterator[int]:
    at = view.find(text)
    while at >= 0:
        yield at
        at = view.find(text, at + 1)
