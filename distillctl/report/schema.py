"""The JSON Schema of `report --format json`, for programs that read it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from distillctl import tasks
from distillctl.report.facts import ReportFacts


def schema() -> dict[str, Any]:
    """Return the schema: what every report says, and what only one kind's says. More keys may come."""
    kinds = {kind: task.report_part for kind, task in tasks.kinds().items()}
    models: list[type[BaseModel]] = [ReportFacts, *kinds.values()]
    refs, document = models_json_schema([(model, "validation") for model in models])
    parts = [
        {"properties": {"task": {"const": kind}}, "allOf": [refs[model, "validation"]]} for kind, model in kinds.items()
    ]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distillctl report --format json"}
    return head | {"allOf": [refs[ReportFacts, "validation"], {"anyOf": parts}]} | document
