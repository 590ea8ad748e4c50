"""Write recipes/README.md's reference of every knob from the schema: `python -m tests.docs.recipe_reference`."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from distillctl.recipe import Recipe
from tests import ROOT
from tests.docs import command_reference

PAGE = ROOT / "recipes" / "README.md"
BOUNDS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
NAMES = {str: "text", bool: "`true` or `false`", int: "whole number", float: "number", Any: "anything"}


@dataclass
class Section:
    """One class of the schema, and the keys of a recipe that hold it."""

    model: type[BaseModel]
    paths: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str | None:
        """Return the value of ``kind`` that chooses this section, where there is a choice."""
        found = self.model.model_fields.get("kind")
        return None if found is None else str(get_args(found.annotation)[0])

    @property
    def knobs(self) -> dict[str, FieldInfo]:
        """Return the fields that a recipe sets, besides ``kind``."""
        return {name: info for name, info in self.model.model_fields.items() if name != "kind"}


def sections() -> list[Section]:
    """Return every section in the order of a recipe; one that stands at several keys comes once."""
    found: dict[type[BaseModel], Section] = {}
    _collect(Recipe, "", found)
    return list(found.values())


def _collect(model: type[BaseModel], path: str, found: dict[type[BaseModel], Section]) -> None:
    section = found.setdefault(model, Section(model))
    section.paths.append(path)
    if len(section.paths) > 1:
        return
    for name, info in section.knobs.items():
        below = f"{path}.{name}".lstrip(".")
        for suffix, inner in _models(info.annotation):
            _collect(inner, below + suffix, found)


def _models(annotation: Any, suffix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections that a field may hold, each with what follows the key: [] in a list, .NAME in a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
    inside = {tuple: "[]", dict: ".NAME"}.get(get_origin(annotation), "")
    for part in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from _models(part, suffix + inside)


def kind_of_value(annotation: Any, links: Mapping[type[BaseModel], str], metadata: Sequence[Any] = ()) -> str:
    """Say in words what a field may hold. links: section → the link to it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return kind_of_value(parts[0], links, annotation.__metadata__)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        kinds = [kind_of_value(part, links, metadata) for part in parts if part is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is tuple:
        return f"list of {kind_of_value(parts[0], links)}"
    if origin is dict:
        return f"mapping of names to {kind_of_value(parts[1], links)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return links[annotation]
    return " ".join([NAMES[annotation], *_bounds(metadata)])


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    limits = []
    for part in _flat(metadata):
        for bound, sign in BOUNDS.items():
            if isinstance(part, bound):
                value = getattr(part, bound.__name__.lower())
                limits.append(f"{sign} {'2³²' if value == 2**32 else value}")
        if isinstance(part, annotated_types.MaxLen):
            yield f"of at most {part.max_length} character{'s' * (part.max_length > 1)}"
    if limits:
        yield " and ".join(limits)


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for part in metadata:
        yield from part.metadata if isinstance(part, FieldInfo) else [part]


def default(info: FieldInfo) -> str:
    """Say what a knob is when a recipe leaves it out."""
    if info.default is PydanticUndefined:
        return "required"
    if info.default is None:
        return "none"
    plain = _plain(info.default)
    return "defaults" if isinstance(info.default, BaseModel) and not plain else f"`{yaml_of(plain)}`"


def _plain(value: Any) -> Any:
    """Return a default as a recipe would write it: of sections only what differs from their own defaults."""
    if isinstance(value, BaseModel):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {name: _plain(inner) for name, inner in value if inner != type(value).model_fields[name].default}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def yaml_of(value: Any) -> str:
    """Return a value as YAML in one line."""
    written = json.dumps(value, ensure_ascii=False)
    if "\\n" in written:
        return written
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _row(name: str, info: FieldInfo, links: Mapping[type[BaseModel], str]) -> str:
    examples = " or ".join(f"`{yaml_of(example)}`" for example in info.examples or ())
    about = f"{info.description} Example: {examples}" if examples else str(info.description)
    cells = (f"`{name}`", kind_of_value(info.annotation, links, info.metadata), default(info), about)
    return f"| {' | '.join(map(_cell, cells))} |"


def _heading(section: Section) -> str:
    if not section.paths[0]:
        return "The whole recipe"
    kind = f", kind: {section.kind}" if section.kind else ""
    return ", ".join(f"`{path}`" for path in dict.fromkeys(section.paths)) + kind


def anchor(heading: str) -> str:
    """Return the name by which a code host links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _section(section: Section, links: Mapping[type[BaseModel], str]) -> str:
    level = "###" if "." in section.paths[0] else "##"
    lines = [f"{level} {_heading(section)}", "", " ".join((section.model.__doc__ or "").split())]
    if section.knobs:
        lines += ["", "| knob | type | default | what it does |", "|---|---|---|---|"]
        lines += [_row(name, info, links) for name, info in section.knobs.items()]
    return "\n".join(lines)


def text() -> str:
    """Return the reference."""
    found = sections()
    links = {one.model: f"[{one.kind or 'section'}](#{anchor(_heading(one))})" for one in found}
    return "\n\n".join(_section(section, links) for section in found)


def main() -> None:
    """Write the page."""
    PAGE.write_text(command_reference.with_reference(PAGE.read_text(encoding="utf-8"), text()), encoding="utf-8")


if __name__ == "__main__":
    main()
