"""Render the snippets from the templates in this folder."""

from __future__ import annotations

import json
import keyword
from collections.abc import Sequence
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from distillctl.data.view_template import WHITESPACE
from distillctl.runtimes import drafts
from distillctl.snippets import literals
from distillctl.snippets.reading import Reading

Place = Literal["bundle", "card", "report"]
"""A file of a bundle, a block of a model card (its code runs in the graph's folder), or a block of the report."""

_HERE = "Path(__file__).resolve().parent.parent"


def render(file: str, reading: Reading, place: Place = "bundle", *, folder: str | None = None, **known: Any) -> str:
    """Return the code of one template, such as `classify.py`.

    folder: the graph's, for Python (default: relative to a bundle's file, or the card's folder). known: other
    variables: name (the recipe's), sample (an input for the report's code). Classifiers: versions, inputs (the
    graph's), ids_graph (the file to load), text_in (whether to load a graph with the tokenizer inside instead).
    Generating models: builder, stop (strings that end an answer), max_new_tokens, begin (special tokens that
    onnxruntime-genai's tokenizer omits), placeholder (a pattern whose matches an answer must have in common with its
    text, or None); in JavaScript also graphs (decoder, encoder: the files to load), caches
    ([name, heads, size] of the decoder's keys and values), start (the decoder's first token after an encoder), ends
    (tokens that end an answer).
    """
    template = reading.template
    call = "text" if template.form == "text" else "view"  # in languages without Jinja
    more = bool(template.variables) and template.form == "jinja"
    argument = "view" if template.form == "view" else "text"
    viewed = argument if template.form == "view" else f"view(text{', **columns' if more else ''})"
    ids = f"list(tokenizer.encode({viewed}))" if file == "answer_genai.py" else f"tokenizer.encode({viewed}).ids"
    return _ENVIRONMENT.get_template(f"{file}.jinja").render(
        place=place,
        file=file,
        folder=folder or ('Path(".")' if place == "card" else _HERE),
        template=template,
        limit=reading.limit,
        tail=reading.tail,
        whitespace=WHITESPACE,
        lowercases=_lowercases(json.loads(reading.tokenizer.to_str())["normalizer"]),
        argument=argument,
        encode=f"{known['begin']} + {ids}" if file == "answer_genai.py" and known.get("begin") else ids,
        columns_taken=", /, **columns: object" if more else "",
        columns_given=", **columns" if more else "",
        columns_shown=_shown(template.variables) if more else "",
        columns_json=json.dumps(dict.fromkeys(template.variables, "…"), ensure_ascii=False),
        drafts=drafts.FILE if (reading.folder / drafts.FILE).is_file() else None,
        context_tokens=drafts.LONGEST,
        draft_tokens=drafts.MOST,
        js_argument=call,
        js_view="view(text)" if call == "text" else "view",
        **known,
    )


def _shown(names: Sequence[str]) -> str:
    """Return a row's columns as further arguments."""
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        return "".join(f', {name}="…"' for name in names)
    return f", **{dict.fromkeys(names, '…')}"


def _lowercases(normalizer: dict[str, Any] | None) -> bool:
    """Tell whether a tokenizer.json's normalizer lowers letters."""
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        return any(map(_lowercases, normalizer["normalizers"]))
    return normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("distillctl.snippets", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {name: getattr(literals, name) for name in ("python", "javascript", "kotlin", "swift")}
    return made


_ENVIRONMENT = _environment()
