"""The bundle's model card: contents, use on each system, measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distillctl.bundle import contents, mobile, model_card, text_in
from distillctl.bundle.manifest import File, Graph
from distillctl.recipe import Recipe
from distillctl.snippets import javascript
from distillctl.snippets.reading import Reading


def classify(
    recipe: Recipe,
    reading: Reading,
    about: str,
    files: Mapping[str, File],
    graphs: Mapping[str, Graph],
    verdicts: Mapping[str, object],
    figures: tuple[list[dict[str, str]], str],
) -> str:
    """Return a classifier's card.

    about: a few sentences. verdicts: `mobile.check_usability` of each graph. figures: the table's rows, and where
    latencies were measured.
    """
    inside = text_in.FILE in files
    tokens = (
        f"`{text_in.FILE}` takes the text itself: it contains its tokenizer, as operators of onnxruntime-extensions. "
        f"On all {graphs[text_in.FILE].against_onnx['rows']:,} held-out rows it gives the same token ids as "
        f"`tokenizer.json`{_odd(graphs[text_in.FILE].other_ids)}. Kotlin and Swift use it."
        if inside
        else "ONNX Runtime does not tokenize: an app needs a tokenizer that reads `tokenizer.json`, or a bundle with a "
        "graph that takes the text itself (`distillctl export RECIPE --bundle --text-in`)."
    )
    use = f"""Each of these loads exactly the files here: `snippets/classify.py`, `snippets/classify.mjs` (browser and
Node), `snippets/Classifier.kt` (Android), `snippets/Classifier.swift` (iOS, macOS).

{tokens}

{model_card.form(reading)}{_javascript(reading)}

{_rest(files, verdicts)}"""
    return _page(recipe, "text-classification", about, use, figures)


def generate(
    recipe: Recipe,
    reading: Reading,
    task: str,
    about: str,
    use: str,
    files: Mapping[str, File],
    verdicts: Mapping[str, object],
    figures: tuple[list[dict[str, str]], str],
) -> str:
    """Return a generating model's card. task: the hub's name for it. use: the card's code."""
    genai = "genai_config.json" in files
    apps = (
        "`snippets/Writer.kt` is for Android, with onnxruntime-genai, which brings tokenizer and loop. For Apple "
        "systems onnxruntime-genai has a C interface and no Swift package."
        if genai
        else "onnxruntime-genai does not run this graph: in Kotlin or Swift, write the loop of `snippets/answer.py` "
        "and use a tokenizer that reads `tokenizer.json`."
    )
    apps = f"`snippets/answer.py` and `snippets/answer.mjs` (browser and Node) load exactly the files here. {apps}"
    use = f"{use}{_javascript(reading)}\n\n{apps}\n\n{_rest(files, verdicts)}"
    return _page(recipe, task, about, use, figures)


def _page(recipe: Recipe, task: str, about: str, use: str, figures: tuple[list[dict[str, str]], str]) -> str:
    rows, machine = figures
    page = model_card.page(recipe, task, about, use, rows)
    return page.replace("\n## Provenance", f"\n{machine}\n\n## Provenance", 1) if machine else page


def _odd(texts: Sequence[str]) -> str:
    """List the texts that the text-in graph tokenizes differently, as JSON strings, because odd characters can be
    invisible.
    """
    tried = f"{len(text_in.ODD_TEXTS)} odd texts that were tried"
    if not texts:
        return f", and on all {tried}"
    return f". Of {tried} it tokenizes these differently: " + ", ".join(f"`{json.dumps(text)}`" for text in texts)


def _javascript(reading: Reading) -> str:
    """List the texts that its tokenizer is known to read differently."""
    return "".join(
        f"\n\n{package}, which the JavaScript uses, is known to read some rare characters differently from the "
        f"tokenizer that the model learned with, such as {', '.join(f'`{json.dumps(text)}`' for text in texts)}."
        for package, texts in javascript.other_ids(reading).items()
    )


def _rest(files: Mapping[str, File], verdicts: Mapping[str, Any]) -> str:
    checked = "\n".join(f"- `{name}`: {mobile.advice(verdict)}" for name, verdict in verdicts.items())
    return f"""## Files

{contents.shown(files)}
- `bundle.json`: all of these with size and SHA-256, their sources, the template to put around an input, and an example
  with its input, view, token ids and answer

`distillctl bundle verify .` checks the files, opens the graphs and repeats the example.

## Execution providers

Advice from onnxruntime's own check for phones:

{checked}"""
