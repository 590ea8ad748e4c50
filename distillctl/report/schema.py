"""The JSON Schema of `report --format json`, for programs that read it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from distillctl import tasks
from distillctl.report.facts import ReportFacts


def schema() -> dict[str, Any]:
    """Return the schema: every report's keys, and those of one kind's report alone. More keys may come."""
    kinds = {kind: task.report_part for kind, task in tasks.kinds().items()}
    models: list[type[BaseModel]] = [ReportFacts, *kinds.values()]
    refs, document = models_json_schema([(model, "validation") for model in models])
    for model in _all(models):
        if (defined := document["$defs"].get(model.__name__)) is not None:
            for name, text in _docstrings(model).items():
                defined["properties"].get(name, {}).setdefault("description", text)
    parts = [
        {"properties": {"task": {"const": kind}}, "allOf": [refs[model, "validation"]]} for kind, model in kinds.items()
    ]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distillctl report --format json"}
    return head | {"allOf": [refs[ReportFacts, "validation"], {"anyOf": parts}]} | document


def _all(models: list[type[BaseModel]]) -> set[type[BaseModel]]:
    """Return the models, and those of the fields' types."""
    classes: set[type[BaseModel]] = set()
    waiting: list[Any] = list(models)
    while waiting:
        kind = waiting.pop()
        if not (inspect.isclass(kind) and issubclass(kind, BaseModel)):
            waiting += getattr(kind, "__args__", ())
        elif kind not in classes:
            classes.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
    return classes


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return field → the text below it, of a model and those from which it inherits."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts
