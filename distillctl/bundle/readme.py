"""The bundle's model card: what is in it, how to use it on which system, what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distillctl.bundle import contents, mobile, model_card, text_in
from distillctl.bundle.manifest import File, Graph
from distillctl.recipe import Recipe
from distillctl.snippets import javascript
from distillctl.snippets.reading import Reading


def of_labels(
    recipe: Recipe,
    reading: Reading,
    about: str,
    files: Mapping[str, File],
    graphs: Mapping[str, Graph],
    verdicts: Mapping[str, Any],
    figures: tuple[list[dict[str, str]], str],
) -> str:
    """A classifier's. about: in a few sentences; verdicts: `mobile.check_usability` of each graph; figures: the table's
    rows, and where the latencies come from."""
    inside = text_in.FILE in files
    tokens = (
        f"`{text_in.FILE}` takes the text itself: its tokenizer is inside, as operators of onnxruntime-extensions. On "
        f"all {graphs[text_in.FILE].against_onnx['rows']:,} held-out rows it gives the very token ids of "
        f"`tokenizer.json`{_odd(graphs[text_in.FILE].other_ids)}. Kotlin and Swift use it."
        if inside
        else "ONNX Runtime makes no token ids: an app needs a tokenizer that reads `tokenizer.json`, or a bundle with "
        "a graph that takes the text itself (`distillctl export RECIPE --bundle --text-in`)."
    )
    use = f"""Each of these loads exactly the files here: `snippets/classify.py`, `snippets/classify.mjs` (browser and
Node), `snippets/Classifier.kt` (Android), `snippets/Classifier.swift` (iOS, macOS).

{tokens}

{model_card.form(reading)}{_javascript(reading)}

{_rest(files, verdicts)}"""
    return _page(recipe, "text-classification", about, use, figures)


def of_texts(
    recipe: Recipe,
    reading: Reading,
    task: str,
    about: str,
    use: str,
    files: Mapping[str, File],
    verdicts: Mapping[str, Any],
    figures: tuple[list[dict[str, str]], str],
) -> str:
    """A writing model's. task: the hub's name; use: the card's code."""
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
    """What it reads otherwise, as JSON strings: what is odd in a text is not always seen."""
    tried = f"of {len(text_in.ODD_TEXTS)} odd texts that were tried"
    if not texts:
        return f", and on all {tried}"
    return f"; {tried} it reads otherwise: " + ", ".join(f"`{json.dumps(text)}`" for text in texts)


def _javascript(reading: Reading) -> str:
    """What its tokenizer is known to read otherwise."""
    return "".join(
        f"\n\n{package}, which the JavaScript uses, is known to read some rare characters otherwise than the tokenizer "
        f"that the model learned with, such as {', '.join(f'`{json.dumps(text)}`' for text in texts)}."
        for package, texts in javascript.other_ids(reading).items()
    )


def _rest(files: Mapping[str, File], verdicts: Mapping[str, Any]) -> str:
    checked = "\n".join(f"- `{name}`: {mobile.advice(found)}" for name, found in verdicts.items())
    return f"""## Files

{contents.shown(files)}
- `bundle.json`: all of these with size and SHA-256, where they came from, what is put around an input (`template`), and
  an example: its input, view, token ids and answer

`distillctl bundle verify .` checks them, opens the graphs and asks the example.

## Execution providers

What onnxruntime's own check for phones advises:

{checked}"""
