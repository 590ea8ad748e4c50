"""Parse YAML text to plain values, and explain how to write a value that YAML does not read as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import yaml

from distillctl.errors import RecipeError

MAX_NODES, MAX_DEPTH = 100_000, 64
"""Limits of a recipe's tree, with aliases expanded."""
_SHOWN = 50
"""Number of characters of a key or value that are shown."""
_TAG = "tag:yaml.org,2002:"
_KINDS = {"int": "a number", "float": "a number", "bool": "a boolean", "null": "no value", "timestamp": "a date"}
"""Last part of a tag → what YAML makes of such a word without quotes."""


class _NotText(yaml.constructor.ConstructorError):
    """The YAML is valid, but not a recipe."""


class _NotPlain(ValueError):
    """The YAML is valid, but has values that JSON lacks."""


class _Bounded(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A SafeLoader that refuses duplicate keys, of which PyYAML silently keeps the last, and unbounded trees."""

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _measure(root, {})
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _unfit(f"{key!r} is given twice", key_node)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Strict(_Bounded):
    """A recipe's loader, which also refuses keys that are not text."""

    at = ""
    """Path of the tree in the recipe."""

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()
        if root is not None:
            _check_texts(root, self.at, set())
        return root


def load_bounded(text: str) -> Any:
    """Parse YAML that is not a recipe, such as a model card's front matter, within a recipe's limits.

    The caller bounds the text's length. Raises yaml.YAMLError for invalid or unbounded YAML, and ValueError, TypeError,
    LookupError, AttributeError or RecursionError for invalid values.
    """
    return yaml.load(text, _Bounded)


def parse(text: str, where: str, at: str = "") -> Any:
    """Return the tree of a recipe's text, or of the value of the key ``at``. RecipeError says where and how to write
    it."""
    try:
        loader = _Strict(text)
        loader.at = at
        try:
            tree = loader.get_single_data()
        finally:
            loader.dispose()
        check_plain(tree, at)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{min(mark.line + 1, len(text.splitlines()))}" if mark and not at else where
        problem = str(error.problem) if isinstance(error, _NotText) else f"not valid YAML: {error.problem}"
        raise RecipeError(f"{problem}{_for_the_shell(at, error)}", where=place) from None
    except _NotPlain as error:
        raise RecipeError(str(error), where=where) from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {error or type(error).__name__}", where=where) from None
    return tree


def as_text(text: str, path: Sequence[str | int], value: object) -> str:
    """Say that ``value`` at ``path`` of a YAML text is not text, and how to write it in quotes."""
    node = _find(text, path)
    if isinstance(node, yaml.ScalarNode):
        return _reads(node)
    if isinstance(value, (dict, list, tuple)):
        return f"is a {'mapping' if isinstance(value, dict) else 'list'}, and text is wanted"
    written = json.dumps(value)
    return f"{written} is no text; write it in quotes: {json.dumps(written)}"


def _find(text: str, path: Sequence[str | int]) -> yaml.Node | None:
    try:
        node: yaml.Node | None = _Strict(text).get_single_node()
    except yaml.YAMLError:
        return None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            return None
    return node


def _reads(node: yaml.ScalarNode, subject: str = "") -> str:
    """Say what YAML makes of a word without quotes, and how to write it as text."""
    kind = _KINDS.get(node.tag.removeprefix(_TAG), "something else")
    word = node.value if len(node.value) <= _SHOWN else f"{node.value[:_SHOWN]}…"
    if word in ("", "~"):
        word = word or "an empty place"
        return f'YAML reads {subject}{word} as {kind}, and text is wanted; an empty text is written in quotes: ""'
    quoted = json.dumps(word, ensure_ascii=False)
    return f"YAML reads {subject}{word} as {kind}, and text is wanted; write it in quotes: {quoted}"


def _for_the_shell(at: str, error: yaml.MarkedYAMLError) -> str:
    return f" (and '{at}=…' in single quotes, for the shell)" if at and isinstance(error, _NotText) else ""


def _unfit(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the number of nodes and the depth of ``node`` with aliases expanded. Raise an error if it is unbounded."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise _unfit("an alias stands within what it stands for", node)
        return size
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    known[id(node)] = None
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    sizes = [_measure(part, known) for part in inner]
    nodes, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    if nodes > MAX_NODES or depth > MAX_DEPTH:
        raise _unfit(f"more than {MAX_NODES:,} values, aliases replaced, or {MAX_DEPTH} levels", node)
    known[id(node)] = nodes, depth
    return nodes, depth


def _check_texts(node: yaml.Node, path: str, seen: set[int]) -> None:
    """Refuse keys that are not text, and dates, which no recipe needs."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}timestamp":
        raise _NotText(None, None, f"{path}: {_reads(node)}".removeprefix(": "), node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _check_texts(value, f"{path}[{index}]", seen)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = (
                    "a key is a list or a mapping; a text that begins with { or [, as a template may, needs quotes"
                )
                raise _NotText(None, None, f"{path}: {problem}".removeprefix(": "), key.start_mark)
            if key.tag.removeprefix(_TAG) in _KINDS:
                raise _NotText(None, None, f"{path}: {_reads(key, 'the key ')}".removeprefix(": "), key.start_mark)
            _check_texts(value, f"{path}.{key.value[:_SHOWN]}".removeprefix("."), seen)


def check_plain(value: object, path: str, depth: int = 1) -> None:
    """Raise a ValueError for values that JSON lacks: YAML also has sets, bytes and infinite numbers."""
    if depth > MAX_DEPTH:
        raise _NotPlain(f"more than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise _NotPlain(f"{path}: the key {str(key)[:_SHOWN]} is no text: put it in quotes".removeprefix(": "))
            check_plain(key, path)
            check_plain(inner, f"{path}.{key[:_SHOWN]}".removeprefix("."), depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_plain(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
            raise _NotPlain(f"{path}: a NUL or half a surrogate pair is no text".removeprefix(": "))
    elif isinstance(value, (int, float)):
        if not (math.isfinite(value) if isinstance(value, float) else -(1 << 63) <= value < 1 << 63):
            raise _NotPlain(f"{path}: a number beyond 64 bits, or none".removeprefix(": "))
    elif value is not None:
        raise _NotPlain(f"{path}: {type(value).__name__} is no kind of value in a recipe".removeprefix(": "))
