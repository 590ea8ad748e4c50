"""The model card: the README.md next to a graph, with its use, measurements, provenance and licences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distillctl.data.view_template import BARE
from distillctl.errors import DistillctlError
from distillctl.models import gguf_header, model_source
from distillctl.recipe import FromConfigStudent, OpenAITeacher, Recipe, yaml_text
from distillctl.snippets.reading import Reading
from distillctl.untrusted import limits, markdown
from distillctl.untrusted.printable import printable

_NOT_STATED = "not stated"
_CARD_BYTES, _LICENCE_CHARACTERS = 1 << 20, 200
"""The most bytes read of a model card, and the most characters quoted of its licence."""
_MOST_CHARACTERS = 1000
"""The most characters of a cell that quotes a stranger."""


def page(recipe: Recipe, task: str, about: str, use: str, measured: Sequence[Mapping[str, str]]) -> str:
    """Return the card's Markdown. task: the hub's name for the task."""
    made_from = sources(recipe)
    licence = printable(made_from[0]["licence"])
    header = {
        **({} if licence == _NOT_STATED else {"license": licence}),
        "pipeline_tag": task,
        "library_name": "onnx",
        "tags": ["onnx", "context-distillation", "distillctl"],
    }
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {recipe.name}

{about}

## Use

{use}

## Measured

On the held-out rows.

{table(measured)}

## Provenance and licences

{table([_escaped(recipe, row) for row in made_from])}

A licence is quoted from the model card next to the files or from the GGUF file, where one is stated. The weights derive
from all three; look at the terms of each before you pass them on.
"""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same columns as a Markdown table."""
    return "\n".join(markdown.table(list(rows[0]), [list(row.values()) for row in rows]))


def _escaped(recipe: Recipe, row: Mapping[str, str]) -> dict[str, str]:
    """Return a row of `sources` in Markdown. A server's address, which the recipe's schema keeps plain, is a link."""
    cells = {column: markdown.plain(text[:_MOST_CHARACTERS]) for column, text in row.items()}
    if isinstance(recipe.teacher, OpenAITeacher):
        url = recipe.teacher.base_url
        cells["source"] = cells["source"].replace(f"served by {markdown.plain(url)}", f"served by {url}")
    return cells


def form(reading: Reading) -> str:
    """Describe the form an input must have before it is tokenized, and what happens to one that is too long."""
    template, limit = reading.template, f"{reading.limit:,} tokens"
    if template.form == "text":
        description = "Whitespace at the ends of a text is dropped, as it was for training"
        if template.prefix or template.suffix:
            description += (
                f". Then {_shown(template.prefix)} is put in front of it and {_shown(template.suffix)} behind it"
            )
        description += ", which the code here does itself."
    elif template.form == "jinja":
        description = (
            "The model does not read the bare input: it was trained on what the template below makes of it. The Python "
            "code here renders that template itself; code in other languages has to be given the rendered text."
        )
        if template.variables:
            names = ", ".join(map(markdown.code, template.variables))
            description += f" Besides the input, the template takes {names} from the input's row."
    else:
        description = (
            "The model does not read the bare input: it was trained on what the messages of `contexts.simplified` in "
            "the recipe make of it, which is more than a constant text around it. The code here has to be given that "
            "whole text, which the app has to build itself."
        )
    ends = "the end of a longer input is cut." if reading.tail is not None else "a longer one is refused with an error."
    description += f" In its context a text may have {limit}; {ends}"
    if template.source is None or template == BARE:
        return description
    source = template.source
    kind = ""
    if source != source.strip() or "```" in source:  # whitespace at an end counts, and is not seen
        kind, source = ", as a JSON string", json.dumps(source, ensure_ascii=False)
    return f"{description}\n\nThe template (`contexts.simplified`){kind}:\n\n{markdown.block(source)}"


def _shown(text: str | None) -> str:
    return markdown.code(json.dumps(text, ensure_ascii=False))


def sources(recipe: Recipe) -> list[dict[str, str]]:
    """Return part, source and stated licence of the student, the teacher and the data."""
    student, data = recipe.student, recipe.data
    if not isinstance(student, FromConfigStudent):
        part, reference = "student's first weights", student.model
    elif isinstance(student.tokenizer, str):
        part, reference = "student's tokenizer (weights are new)", student.tokenizer
    else:
        part, reference = "student (weights and tokenizer are new)", None
    licence = _licence(recipe, reference, student.revision) if reference else _NOT_STATED
    return [
        {"part": part, "source": reference or "this recipe's data", "licence": licence},
        _teacher(recipe),
        {"part": "data", "source": ", ".join(data.sources) or f"{data.train}, {data.eval}", "licence": _NOT_STATED},
    ]


def _teacher(recipe: Recipe) -> dict[str, str]:
    teacher = recipe.teacher
    if isinstance(teacher, OpenAITeacher):
        return {"part": "teacher", "source": f"{teacher.model}, served by {teacher.base_url}", "licence": _NOT_STATED}
    return {"part": "teacher", "source": teacher.model, "licence": _licence(recipe, teacher.model, teacher.revision)}


def _licence(recipe: Recipe, reference: str, revision: str | None) -> str:
    """Return the `license` of the model card next to a local model's files, or of the GGUF file."""
    try:
        path = model_source.model(reference, recipe.folder, revision=revision, where="").path
        if path is not None and path.suffix == ".gguf" and not (path.parent / "README.md").is_file():
            return gguf_header.general(path).get("license") or _NOT_STATED
        folder = path if path is None or path.is_dir() else path.parent
        stated = None if folder is None else _front_matter(Path(folder) / "README.md").get("license")
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
        DistillctlError,
    ):
        return _NOT_STATED
    names = stated if isinstance(stated, list) else [stated]
    quoted = " ".join(", ".join(name for name in names if isinstance(name, str)).split())
    return quoted[:_LICENCE_CHARACTERS] or _NOT_STATED


def _front_matter(path: Path) -> Any:
    """Return the YAML between a card's first two lines of dashes, {} without such lines.

    Any exception may be raised where the card or its YAML is broken.
    """
    text = limits.read_bytes(path, _CARD_BYTES).decode("utf-8")
    return yaml_text.load_bounded(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
