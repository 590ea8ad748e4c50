"""A bundle's code that is started and asked nothing shows its usage, before it loads anything."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distillctl.data import view_template
from distillctl.data.view_table import ViewTable
from distillctl.snippets.code import render
from distillctl.snippets.reading import Reading
from tests.fixtures import bundled
from tests.snippets.test_snippets import LIMIT, contexts, labels, texts

_folders = tempfile.TemporaryDirectory()
JAVASCRIPT = {
    "onnxruntime-web": "export class InferenceSession {}; export class Tensor {}",
    "@huggingface/tokenizers": "export class Tokenizer { constructor() { throw 'loaded'; } }",
}
"""Packages → what stands in for them: they can be imported, and nothing can be loaded with them."""

NOTHING = {"no-argument": [], "empty": [""], "blank": [" \n\u3000"], "words-without-quotes": ["two", "words"]}
"""Arguments that ask nothing, or too much."""
FILES = ["classify.py", "classify_text_in.py", "answer.py", "answer_genai.py", "classify.mjs", "answer.mjs"]


@functools.cache
def without_packages() -> Path:
    """A bundle of each kind where none of the packages that its code needs is installed: to load one is an error."""
    root = Path(_folders.name) / "without-packages"
    for kind, folder in (("labels", labels("around", "word_piece")[2]), ("texts", texts("around", "genai")[2])):
        shutil.copytree(folder, root / kind)
    for name in ("onnxruntime", "onnxruntime_genai", "onnxruntime_extensions", "tokenizers", "numpy", "jinja2"):
        (root / f"{name}.py").write_text("raise ImportError('loaded')")
    for name, source in JAVASCRIPT.items():
        (root / "node_modules" / name).mkdir(parents=True)
        (root / "node_modules" / name / "index.mjs").write_text(source)
        described = {"name": name, "version": "1.0.0", "exports": "./index.mjs"}
        (root / "node_modules" / name / "package.json").write_text(json.dumps(described))
    return root


def started(file: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    if file.endswith(".mjs") and shutil.which("node") is None:
        pytest.skip("there is no node")
    root = without_packages()
    path = root / ("labels" if file.startswith("classify") else "texts") / "snippets" / file
    program = "node" if file.endswith(".mjs") else sys.executable
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [program, path, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("asked", NOTHING)
@pytest.mark.parametrize("file", FILES)
def test_nothing_asked_shows_the_usage_and_loads_nothing(file, asked):
    done = started(file, NOTHING[asked])
    assert (done.returncode, done.stdout) == (2, "")
    assert f'usage: {"node" if file.endswith(".mjs") else "python"} {file} "a text"' in done.stderr
    assert len(done.stderr.splitlines()) <= 4


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("file", FILES)
def test_help_shows_the_usage(file, flag):
    done = started(file, [flag])
    assert (done.returncode, done.stderr) == (0, "")
    assert f'{file} "a text"' in done.stdout


@pytest.mark.parametrize("file", FILES)
def test_what_is_asked_is_answered_whatever_it_looks_like(file):
    """The packages are loaded then, which these refuse: -1 is a text."""
    done = started(file, ["-1 star"])
    assert done.returncode == 1
    assert "loaded" in done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.parametrize("file", ["classify.mjs", "answer.mjs"])
def test_javascript_that_is_imported_takes_no_arguments_of_the_importer(file):
    root = without_packages()
    folder = root / ("labels" if file.startswith("classify") else "texts")
    (root / "importer.mjs").write_text(
        f'try {{ await import("{folder}/snippets/{file}"); }} catch (error) {{ console.log("went on:", error); }}'
    )
    for words in ([], ["--help"], ["a text"]):
        done = subprocess.run(["node", root / "importer.mjs", *words], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("went on:")


@pytest.mark.parametrize("file", ["classify.py", "answer.py", "answer_genai.py"])
@pytest.mark.parametrize(
    "words", [["a text"], ["a text", "no JSON"], ["a text", "[1]"], ["", "{}"], ["a text", "{}", "more"], []]
)
def test_a_rows_columns_that_are_missing_show_the_usage(tmp_path, file, words):
    recipe, inputs = bundled.recipe(contexts=contexts("{{ title }}: {{ input }}")), bundled.texts()
    rows = ViewTable([f"row-{row}" for row in range(len(inputs))], inputs, [None] * len(inputs), inputs, inputs)
    made = Reading(view_template.of(recipe, rows), LIMIT, labels("around", "word_piece")[2])
    known = {"builder": "genai", "stop": [], "max_new_tokens": 4, "begin": [], "placeholder": None}
    (tmp_path / file).write_text(render(file, made, name="x", **known))
    environment = {**os.environ, "PYTHONPATH": str(without_packages())}
    done = subprocess.run(
        [sys.executable, tmp_path / file, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"""usage: python {file} "a text" '{{"title": "…"}}'""" in done.stderr
