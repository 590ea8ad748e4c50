"""From a YAML file to a recipe, with errors that say where and what was meant; and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from distillctl.errors import RecipeError
from distillctl.recipe.base import specs
from distillctl.recipe.root import Recipe


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at ``path`` with ``key.path=value`` overrides; RecipeError names file, key and the nearest name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("no such recipe", where=str(path), next="distillctl init my-recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path)) from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError("a recipe is a mapping of sections", where=str(path), next="distillctl init my-recipe")
    for override in overrides:
        _apply(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_explain(error), where=str(path)) from None
    recipe._path, recipe._overrides = path, tuple(overrides)
    return recipe


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError(f"not valid YAML: {error.problem}", where=place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"not valid YAML: {error or type(error).__name__}", where=where) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b[0].c=value`` in ``tree``; the value is YAML, typed later by the schema."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError("expected key.path=value", where=f"--set {override}")
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in re.findall(r"[^.\[\]]+", key)]
    node: Any = tree
    part: Any
    for part, following in zip(parts, [*parts[1:], None], strict=True):
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
    problems = error.errors(include_url=False)
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
        lines.append(f"{path}: {message}" if path else message)
    return "\n".join(lines)


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
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
