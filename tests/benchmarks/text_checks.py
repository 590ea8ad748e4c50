"""How often human translators seem to break placeholders, and how often their language is mistaken.

Both are measured on the references of a translator's recipe, with all of its rows: what the checks of generated text
find there is their own error, or the translators'. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from distillctl import console, recipe
from distillctl.data import examples
from distillctl.metrics import language, placeholders

_BOUNDS = (1, 10, language.LEAST_CHARACTERS, 30, 60, 10**6)
"""Lengths of a translation, in characters, between which mistaken languages are counted."""


def measure(path: Path, first: str, second: str) -> dict[str, Any]:
    """Count on all rows of the recipe. first, second: the languages of inputs and references."""
    whole = recipe.load(path, ("data.exclude=null", "data.train_rows=null", "data.eval_rows=1"))
    with tempfile.TemporaryDirectory() as folder:
        dataset = examples.load(whole, Path(folder))
        rows = [(row.input, row.reference) for split in dataset.splits.values() for row in split if row.reference]
    some = [pair for pair in rows if placeholders.find(pair[0])]
    kept = sum(placeholders.difference(*pair) is None for pair in some)
    found: dict[str, Any] = {"rows": len(rows), "with_placeholders": len(some), "kept": kept / len(some)}
    translations = [reference for text, reference in rows if text != reference]
    found["mistaken"] = {}
    for low, high in itertools.pairwise(_BOUNDS):
        part = [text for text in translations if low <= len(text.strip()) < high]
        mistaken = sum(language.between(first, second).classify(text)[0] == first for text in part)
        found["mistaken"][f"{low} to {high - 1}"] = {"texts": len(part), "share": mistaken / max(1, len(part))}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.text_checks", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--languages", nargs=2, default=("en", "fr"), help="of inputs and references (default: en fr)")
    options = parser.parse_args()
    found = measure(options.recipe, *options.languages)
    kept = f"the translators keep those of {found['kept']:.1%}"
    console.text(f"{found['rows']:,} rows; {found['with_placeholders']:,} inputs have placeholders, {kept}")
    console.text("characters of the translation    texts  taken for the input's language")
    for length, part in found["mistaken"].items():
        console.text(f"{length:>29}{part['texts']:9,}  {part['share']:30.1%}")
    console.print_json(found)


if __name__ == "__main__":
    main()
