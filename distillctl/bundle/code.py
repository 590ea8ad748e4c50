"""The snippets: code that loads exactly the files of this bundle, filled in from templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

FOLDER = "snippets"

_HEADER = '''"""{name}: the answer to a text.

pip install {packages}
python {file} "a text"
"""

import os
import sys
from pathlib import Path

os.chdir(Path(__file__).resolve().parent.parent)
'''


def of_labels(folder: Path, **known: Any) -> list[str]:
    """For a classifier; returns the files' names. known: name, versions, text_in (is there such a graph), ids_graph
    (the file that an app loads where there is none), inputs, max_length, at_end (special tokens behind a text)."""
    files = ["classify.py", "classify.mjs", "Classifier.kt", "Classifier.swift"]
    return _render(folder, files + ["classify_text_in.py"] * known["text_in"], known)


def of_texts(folder: Path, name: str, code: str, genai: str | None, **known: Any) -> list[str]:
    """For a model that writes. code, genai: as the card has them, with `text = "…"`. known: graphs (decoder, encoder:
    the files that an app loads), caches ([name, heads, size] of the decoder's keys and values), start (the decoder's
    first token where there is an encoder), ends (tokens that end an answer), stop (strings that do), begin (special
    tokens that onnxruntime-genai's tokenizer leaves out), max_new_tokens."""
    written = _render(folder, ["answer.mjs", *(["Writer.kt"] if genai else [])], {"name": name, **known})
    for file, body, packages in (
        ("answer.py", code, "onnxruntime tokenizers numpy"),
        ("answer_genai.py", genai, "onnxruntime-genai"),
    ):
        if body:
            asked = body.replace('text = "…"', "text = sys.argv[1]")
            header = _HEADER.format(name=name, packages=packages, file=file)
            (folder / FOLDER).mkdir(exist_ok=True)
            (folder / FOLDER / file).write_text(f"{header}{asked}", encoding="utf-8")
            written.append(file)
    return written


def _render(folder: Path, files: Sequence[str], known: dict[str, Any]) -> list[str]:
    environment = Environment(
        loader=PackageLoader("distillctl.bundle", FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    (folder / FOLDER).mkdir(exist_ok=True)
    for file in files:
        text = environment.get_template(f"{file}.jinja").render(known)
        (folder / FOLDER / file).write_text(text, encoding="utf-8")
    return [*files]


def labels_json(labels: Sequence[str]) -> str:
    return json.dumps([*labels], indent=2, ensure_ascii=False) + "\n"
