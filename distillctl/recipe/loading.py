"""Load a recipe from a YAML file, with errors that give the place and the likely meaning, and write it back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from distillctl.errors import RecipeError
from distillctl.recipe import yaml_text
from distillctl.recipe.base import NotText, specs
from distillctl.recipe.root import Recipe
from distillctl.untrusted import limits

MAX_BYTES = 1 << 20
"""Largest recipe; longer texts belong into files that it names."""
_INDEX = re.compile(r"[0-9]{1,9}")
"""A list's index in a key path."""
_SHOWN, _SHOWN_CHARACTERS = 20, 300
"""Numbers of problems of a recipe that are shown, and of characters of each."""


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe with ``key.path=value`` overrides. RecipeError gives file, key and the nearest name."""
    text = _text(path)
    tree = yaml_text.parse(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of sections", where=str(path), next=_START)
    for override in overrides:
        _apply(tree, override)
    try:
        yaml_text.check_plain(tree, "")
    except ValueError as error:
        raise RecipeError(str(error), where=f"{path} with {len(overrides)} --set") from None
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error, tree, _Sources(text, overrides)), where=str(path)) from None
    recipe._path, recipe._overrides = path, tuple(overrides)
    return recipe


_START = "distillctl init my-recipe"


def _text(path: Path) -> str:
    """Return the recipe's text. Raise RecipeError if the file is not text."""
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            mend = next((f"distillctl run {file}" for file in sorted(path.glob("*.y*ml"))), _START)
            raise RecipeError(f"is {kind}: a recipe is a YAML file", where=str(path), next=mend)
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


def _apply(tree: dict[str, object], override: str) -> None:
    """Set ``a.b[0].c=value`` in ``tree``; the value is YAML, typed later by the schema."""
    if any("\ud800" <= character <= "\udfff" for character in override):
        raise RecipeError(
            "is no text in the encoding of the locale", where=f"--set {override}", next="set PYTHONUTF8=1 and use UTF-8"
        )
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError("expected key.path=value", where=f"--set {override}")
    parts = _parts(key)
    if not parts or len(parts) > yaml_text.MAX_DEPTH:
        problem = f"expected key.path=value, with one to {yaml_text.MAX_DEPTH} keys"
        raise RecipeError(problem, where=f"--set {override}")
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
            node[part] = yaml_text.parse(value, f"--set {override}", key)
        else:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]


def _parts(key: str) -> list[str | int]:
    return [int(part) if _INDEX.fullmatch(part) else part for part in re.findall(r"[^.\[\]]+", key)]


@dataclass(frozen=True)
class _Sources:
    """The texts in which a recipe's values are written: the file, and the values of --set."""

    text: str
    overrides: Sequence[str]

    def as_text(self, location: list[str | int], value: object) -> str:
        """Say how to write the value at ``location``, so that it is text."""
        for override in reversed(self.overrides):
            key, _, written = override.partition("=")
            parts = _parts(key)
            if [str(part) for part in location[: len(parts)]] == [str(part) for part in parts]:
                advice = yaml_text.as_text(written, location[len(parts) :], value)
                return f"{advice} (and '{key}=…' in single quotes, for the shell)" if "quotes" in advice else advice
        return yaml_text.as_text(self.text, location, value)


def _explain(error: ValidationError, tree: object, sources: _Sources) -> str:
    """Describe every problem on its own line: path, problem, the nearest name for an unknown key."""
    lines: dict[tuple[str | int, ...], str] = {}
    problems = error.errors(include_url=False)
    within = {tuple(_location(problem["loc"], tree)[:-1]) for problem in problems}
    for problem in problems:
        if problem["type"] == "too_short" and len(problems) > 1:
            continue  # pydantic's echo of an item that failed by itself
        location = _location(problem["loc"], tree)
        if isinstance(problem["input"], list) and tuple(location) in within:
            continue  # a text or a list of texts is expected, and another problem describes the list
        message = problem["msg"].removeprefix("Value error, ")
        cause = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(location)
        elif problem["type"] == "missing":
            message = "is missing"
        elif isinstance(cause, NotText):
            location += cause.path
            message = sources.as_text(location, cause.value)
        elif problem["type"] == "string_type":
            message = sources.as_text(location, problem["input"])
        elif problem["type"] == "dict_type":
            message = "a mapping is wanted, such as {one: first, two: second}"
        elif problem["type"] in ("tuple_type", "list_type"):
            message = "a list is wanted, such as [one, two]"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            message = "a section is wanted: keys with their values"
        elif problem["type"] in _MESSAGES:
            message = _MESSAGES[problem["type"]].format_map(problem.get("ctx", {}))
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".").replace("\n", "\\n")
        lines.setdefault((*location, *([] if location else [message])), f"{path}: {message}" if path else message)
    shown = [line[:_SHOWN_CHARACTERS] for line in lines.values()]
    more = [f"and {len(shown) - _SHOWN:,} more"] if len(shown) > _SHOWN else []
    return "\n".join([*shown[:_SHOWN], *more])


_MESSAGES = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is wanted"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is wanted"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is wanted"),
    "literal_error": "must be {expected}",
    "union_tag_invalid": "there is no kind '{tag}': it must be one of {expected_tags}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must not be empty",
}
"""Type of pydantic's errors → message, with the keys of the error's context."""


def _location(parts: Iterable[str | int], tree: Any) -> list[str | int]:
    """Return the path in the recipe, without pydantic's own parts, a union's choice or a validator's name."""
    path: list[str | int] = []
    for part in parts:
        inside = part in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(part, int)
        if not inside and (part in _KINDS or _CHOICE.fullmatch(str(part))):
            continue
        tree = tree[part] if inside else None
        path.append(part)
    return path


_CHOICE = re.compile(r"(str|int|float|bool)|[a-z-]+\[.*\]")
"""Pydantic's names of a union's choices that are not sections, such as `str` and `tuple[str, ...]`."""


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name[:50], list(known), n=1, cutoff=0.6)
    return f", did you mean {match[0]}?" if match else ""


def _kinds(cls: type[BaseModel]) -> tuple[Any, ...]:
    field = cls.model_fields.get("kind")
    return () if field is None else getattr(field.annotation, "__args__", ())


def _unknown_key(location: list[str | int]) -> str:
    """Name the kinds that have the key, or else the nearest known key."""
    name, models = str(location[-1]), _models_at(location[:-1])
    if kinds := [kind for model in models if name in model.model_fields for kind in _kinds(model)]:
        return f"unknown key for this kind; {' and '.join(kinds)} {'have' if len(kinds) > 1 else 'has'} it"
    return "unknown key" + _nearest(name, {known for model in models for known in model.model_fields})


def _models_at(location: list[str | int]) -> list[Any]:
    """Return the sections that may stand at ``location``, one for each kind."""
    models: list[Any] = [Recipe]
    for part in location:
        if isinstance(part, int):
            continue
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [model for annotation in annotations for model in _models_in(annotation)]
    return models


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in getattr(annotation, "__args__", ()) for model in _models_in(arg)]


_KINDS = {kind for cls in specs() for kind in _kinds(cls)}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    return TypeAdapter(Recipe).json_schema()


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, with every default."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(tree: object, prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to ``{"a.b[0].c": leaf}``, to tell which knob changed."""
    if isinstance(tree, Mapping) and tree:
        items = [(f"{prefix}.{key}".lstrip("."), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        items = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {path: leaf for key, value in items for path, leaf in flatten(value, key).items()}
