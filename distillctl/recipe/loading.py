"""From a YAML file to a recipe, with errors that say where and what was meant; and back."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from distillctl import limits
from distillctl.errors import RecipeError
from distillctl.recipe.base import specs
from distillctl.recipe.root import Recipe

MAX_BYTES = 1 << 20
"""Of a recipe; longer texts belong into files that it names."""
_MAX_NODES, _MAX_DEPTH = 100_000, 64
"""Of a recipe's tree, each alias counted as what it stands for."""
_INDEX = re.compile(r"[0-9]{1,9}")
"""Of a list's item, in a key path."""
_TOLD, _TOLD_CHARACTERS = 20, 300
"""Of what is wrong with a recipe: lines, and characters of each."""


class _Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader that refuses a key given twice, where PyYAML silently keeps the last, and a tree without bounds."""

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _measure(root, {})
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _unfit("a key is a list or a mapping", key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _unfit(f"{key!r} is given twice", key_node)
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _unfit(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Nodes and depth of what ``node`` stands for once its aliases are replaced; an error where that is without end."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _unfit("an alias stands within what it stands for", node)
        return found
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    known[id(node)] = None
    inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    sizes = [_measure(part, known) for part in inner]
    nodes, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    if nodes > _MAX_NODES or depth > _MAX_DEPTH:
        raise _unfit(f"more than {_MAX_NODES:,} values, aliases replaced, or {_MAX_DEPTH} levels", node)
    known[id(node)] = nodes, depth
    return nodes, depth


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at ``path`` with ``key.path=value`` overrides; RecipeError names file, key and the nearest name."""
    tree = _parse_yaml(_text(path), str(path))
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of sections", where=str(path), next=_START)
    for override in overrides:
        _apply(tree, override)
    try:
        _check_plain(tree, "")
    except ValueError as error:
        raise RecipeError(str(error), where=f"{path} with {len(overrides)} --set") from None
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error), where=str(path)) from None
    recipe._path, recipe._overrides = path, tuple(overrides)
    return recipe


_START = "distillctl init my-recipe"


def _text(path: Path) -> str:
    """The recipe's text; RecipeError where that is none."""
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise RecipeError(f"is {kind}: a recipe is a YAML file", where=str(path), next=_START)
        text = limits.read_bytes(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise RecipeError("no such recipe", where=str(path), next=_START) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError("is not UTF-8 text: a recipe is a YAML file", where=f"{path}:{line}", next=_START) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path)) from None
    if not text.strip():
        raise RecipeError("is empty; a recipe is a mapping of sections", where=str(path), next=_START)
    return text


def _parse_yaml(text: str, where: str) -> Any:
    try:
        tree = yaml.load(text, _Strict)
        _check_plain(tree, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{min(mark.line + 1, len(text.splitlines()))}" if mark else where
        raise RecipeError(f"not valid YAML: {error.problem}", where=place) from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {error or type(error).__name__}", where=where) from None
    return tree


def _check_plain(value: Any, path: str, depth: int = 1) -> None:
    """ValueError for what JSON cannot carry: YAML has dates, sets and bytes, too, and numbers without end."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{path}: the key {str(key)[:50]} is no text: put it in quotes".removeprefix(": "))
            _check_plain(key, path)
            _check_plain(inner, f"{path}.{key}".removeprefix("."), depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
            raise ValueError(f"{path}: a NUL or half a surrogate pair is no text")
    elif isinstance(value, (int, float)):
        if not (math.isfinite(value) if isinstance(value, float) else -(1 << 63) <= value < 1 << 63):
            raise ValueError(f"{path}: a number beyond 64 bits, or none")
    elif value is not None:
        raise ValueError(f"{path}: {type(value).__name__} is no kind of value here: put it in quotes")


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b[0].c=value`` in ``tree``; the value is YAML, typed later by the schema."""
    if any("\ud800" <= character <= "\udfff" for character in override):
        raise RecipeError(
            "is no text in the encoding of the locale", where=f"--set {override}", next="set PYTHONUTF8=1 and use UTF-8"
        )
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError("expected key.path=value", where=f"--set {override}")
    parts: list[str | int] = [int(p) if _INDEX.fullmatch(p) else p for p in re.findall(r"[^.\[\]]+", key)]
    if not parts or len(parts) > _MAX_DEPTH:
        raise RecipeError(f"expected key.path=value, with one to {_MAX_DEPTH} keys", where=f"--set {override}")
    node: Any = tree
    part: Any
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(node, dict):
            part = str(part)  # a key of digits is a name there
        if isinstance(node, list) and (not isinstance(part, int) or part >= len(node)):
            raise RecipeError(f"no item {part} in a list of {len(node)}", where=f"--set {override}")
        if not isinstance(node, (dict, list)):
            raise RecipeError(f"{part}: its parent is not a section", where=f"--set {override}")
        if following is None:
            node[part] = _parse_yaml(value, f"--set {override}")
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


def _explain(error: ValidationError) -> str:
    """Every problem on its own line: path, what is wrong, the nearest name for an unknown key."""
    lines = []
    problems = error.errors(include_url=False, include_input=False)
    for problem in problems:
        if problem["type"] == "too_short" and len(problems) > 1:
            continue  # pydantic's echo of an item that failed by itself
        location = [part for part in problem["loc"] if not _is_union_tag(part)]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key" + _nearest(str(location[-1]), _known_keys(location[:-1]))
        elif problem["type"] == "missing":
            message = "is missing"
        lines.append((f"{path}: {message}" if path else message)[:_TOLD_CHARACTERS])
    more = [f"and {len(lines) - _TOLD:,} more"] if len(lines) > _TOLD else []
    return "\n".join([*lines[:_TOLD], *more])


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name[:50], list(known), n=1, cutoff=0.6)
    return f", did you mean {match[0]}?" if match else ""


def _is_union_tag(part: str | int) -> bool:
    """pydantic puts the chosen ``kind`` into the path of a union; it is no key of the recipe."""
    return part in _KINDS


def _kinds(cls: type[BaseModel]) -> tuple[Any, ...]:
    field = cls.model_fields.get("kind")
    return () if field is None else getattr(field.annotation, "__args__", ())


def _known_keys(location: list[str | int]) -> set[str]:
    """The field names that may stand at ``location``."""
    models: list[Any] = [Recipe]
    for part in location:
        if isinstance(part, int):
            continue
        found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [model for annotation in found for model in _models_in(annotation)]
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in _models_in(arg)]


_KINDS = {kind for cls in specs() for kind in _kinds(cls)}


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema()


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as ``{"a.b[0].c": leaf}``; used to say which knob changed."""
    if isinstance(tree, Mapping) and tree:
        items = [(f"{prefix}.{key}".lstrip("."), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        items = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {path: leaf for key, value in items for path, leaf in flatten(value, key).items()}
