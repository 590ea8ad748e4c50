"""Snippets, cards and text-in graphs give the recorded answers to bare inputs, whatever their template."""

from __future__ import annotations

import functools
import json
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distillctl.bundle import text_in
from distillctl.bundle.manifest import NAME, BundleManifest
from distillctl.bundle.verify import verify
from distillctl.data import view_table
from distillctl.data.rows import Example
from distillctl.data.view_table import ViewTable
from distillctl.data.views import renderers
from distillctl.errors import GateFailed, RecipeError
from distillctl.metrics import placeholders
from distillctl.recipe import Recipe
from distillctl.report import use
from distillctl.report.facts import ReportFacts
from distillctl.run_dir.facts import DataFacts, Facts, StudentFacts
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.snippets import javascript, literals
from distillctl.snippets.reading import Reading
from distillctl.stages import bundle
from distillctl.tasks.classify import card as label_card
from distillctl.tasks.generate import card as text_card
from distillctl.tasks.generate.facts import GenerateTrain
from tests.fixtures import bundled, exported_generate, tiny, tiny_generate, tokenizers_of_kind

pytestmark = [pytest.mark.long, pytest.mark.slow]

AROUND = {
    "nothing": "{{ input }}",
    "before": "Bazu miro: {{ input }}",
    "behind": "{{ input }}\n",
    "around": 'do "ba" $x\n{{ input }}\n\nda do:',
}
MORE = {"upper": "{{ input | upper }} do", "twice": "{{ input }} do {{ input }}"}
KINDS = {"word_piece": tokenizers_of_kind.word_piece, "byte_level": tokenizers_of_kind.byte_level}
LIMIT = 44
STUDENT = StudentFacts(kl=0.1, agreement=0.9, max_length=LIMIT)
LONG = "  " + " ".join(tokenizers_of_kind.texts(60)) + "\n"

_folders = tempfile.TemporaryDirectory()


def contexts(source: str) -> dict[str, Any]:
    return {"full": {"template": "{{ input }}"}, "simplified": {"template": source}}


def views(recipe: Recipe, inputs: list[str]) -> list[str]:
    """As collect renders them."""
    renderer = renderers(recipe, {})["simplified"]
    return [renderer.render(Example(str(row), text.strip())) for row, text in enumerate(inputs)]


@functools.cache
def labels(template: str, kind: str) -> tuple[Recipe, Workspace, Path]:
    """A run that chooses labels, its bundle made; read only."""
    source = {**AROUND, **MORE}[template]
    text_in_too = template in AROUND
    recipe = bundled.recipe(contexts=contexts(source), bundle={"text_in": text_in_too})
    inputs = bundled.texts()
    root = Path(_folders.name) / f"{template}-{kind}"
    root.mkdir()
    space = bundled.workspace(root, KINDS[kind], inputs, views(recipe, inputs))
    tiny.commit(space, "train", StageOutput([], STUDENT))
    tiny.commit(space, "bundle", bundle.run(recipe, space))
    return recipe, space, space.folder("bundle")


@functools.cache
def texts(template: str, builder: str) -> tuple[Recipe, Workspace, Path]:
    """A run that writes, its bundle made; read only."""
    recipe = exported_generate.recipe(contexts=contexts({**AROUND, **MORE}[template]))
    task = recipe.generate.model_copy(update={"keep_placeholders": template == "behind"})
    recipe = recipe.model_copy(update={"task": task})
    exported = exported_generate.exported({"trace": "gpt2", "seq2seq": "t5", "genai": "llama"}[builder], builder)
    root = Path(_folders.name) / f"{template}-{builder}"
    root.mkdir()
    space = exported_generate.workspace(root, exported.model)
    inputs = tiny_generate.texts(12)
    table = ViewTable([f"row-{row}" for row in range(12)], inputs, [None] * 12, inputs, views(recipe, inputs))
    view_table.write(space.folder("collect") / "views.parquet", {"train": table, "eval": table})
    tiny.commit(space, "export", StageOutput([], Facts.model_validate({"builder": builder})))
    shutil.copytree(exported.folder, space.folder("quantize"))
    outputs = sorted(path.name for path in space.folder("quantize").iterdir())
    tiny.commit(
        space,
        "quantize",
        StageOutput(outputs, tiny.deployed("chrf")),
    )
    tiny.commit(space, "bundle", bundle.run(recipe, space))
    return recipe, space, space.folder("bundle")


def table(space: Workspace) -> ViewTable:
    return view_table.read(space.folder("collect") / "views.parquet", "eval")


def recorded_labels(space: Workspace) -> np.ndarray:
    """Probabilities of the held-out rows, as quantize measures them."""
    return softmax(OnnxClassifier(space.folder("quantize")).logits(table(space).simplified), axis=-1)


def recorded_texts(space: Workspace) -> list[str]:
    graph = open_generator(space.folder("quantize"))
    ids = [graph.generate(graph.encode(view), exported_generate.MAX_NEW_TOKENS) for view in table(space).simplified]
    return [graph.decode(one).strip() for one in ids]


def untidy(inputs: list[str]) -> list[str]:
    """As users give them: with whitespace around."""
    return [f"\n \u3000{text}\t\x1c" for text in inputs]


def python(file: Path, function: str) -> Any:
    return runpy.run_path(str(file))[function]


def in_node(npm: Path, folder: Path, file: str, function: str, given: Sequence[str | list[str]]) -> list[Any]:
    """What a bundle's JavaScript returns for each text, or for each list of arguments."""
    shutil.rmtree(npm / "bundle", ignore_errors=True)
    shutil.copytree(folder, npm / "bundle")
    (npm / "given.json").write_text(json.dumps(given))
    code = f"""import {{ {function} as ask }} from "./bundle/snippets/{file}"; import fs from "node:fs";
const found = [];
for (const given of JSON.parse(fs.readFileSync("given.json"))) {{
  try {{ found.push(await ask(...[given].flat())); }} catch (error) {{ found.push(`refused: ${{error.message}}`); }}
}}
fs.writeFileSync("found.json", JSON.stringify(found));"""
    (npm / "ask.mjs").write_text(code)
    subprocess.run(["node", "ask.mjs"], cwd=npm, check=True, capture_output=True, timeout=300)
    return json.loads((npm / "found.json").read_text())


def blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*AROUND, *MORE])
def test_python_gives_the_recorded_labels_to_bare_inputs(template, kind):
    _, space, folder = labels(template, kind)
    inputs, wanted = untidy(table(space).input), recorded_labels(space)
    for name in ["classify.py"] + ["classify_text_in.py"] * (template in AROUND):
        classify = python(folder / "snippets" / name, "classify")
        found = [classify(text) for text in inputs]
        assert list(found[0]) == tiny.LABELS
        np.testing.assert_allclose([list(one.values()) for one in found], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", AROUND)
def test_only_the_end_of_a_long_input_is_cut(template, kind):
    recipe, space, folder = labels(template, kind)
    read = python(folder / "snippets" / "classify.py", "read")
    reading = Reading.of(recipe, table(space), STUDENT, folder)
    before, behind = AROUND[template].split("{{ input }}")
    whole = reading.tokenizer.encode(f"{before}{LONG.strip()}{behind}").ids
    cut = read(LONG)
    assert len(cut) == LIMIT < len(whole)
    shared = next((at for at, (a, b) in enumerate(zip(cut, whole, strict=False)) if a != b), LIMIT)
    assert shared >= LIMIT - len(reading.tail)  # from the front, all but the last tokens of the view
    assert cut[LIMIT - len(reading.tail) :] == whole[len(whole) - len(reading.tail) :]
    decode = functools.partial(reading.tokenizer.decode, skip_special_tokens=False)
    assert "".join(decode(reading.tail).split()).startswith("".join(behind.lower().split())) or "[UNK]" in decode(cut)
    inside = python(folder / "snippets" / "classify_text_in.py", "classify")(LONG)
    assert python(folder / "snippets" / "classify.py", "classify")(LONG) == pytest.approx(inside, abs=1e-5)


@pytest.mark.parametrize("template", MORE)
def test_what_cannot_be_cut_is_refused_with_the_limit(template):
    _, space, folder = labels(template, "byte_level")
    with pytest.raises(ValueError, match=f"the model takes {LIMIT}"):
        python(folder / "snippets" / "classify.py", "classify")(LONG)
    recipe = bundled.recipe(contexts=contexts(MORE[template]), bundle={"text_in": True})
    with pytest.raises(RecipeError, match="more than text around the input") as told:
        bundle.run(recipe, space)
    assert (told.value.where, told.value.exit_code) == ("bundle.text_in", 3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*AROUND, "upper"])
def test_javascript_gives_the_recorded_labels_to_bare_inputs(template, kind, npm):
    _, space, folder = labels(template, kind)
    given = untidy(table(space).input) if template in AROUND else table(space).simplified
    *found, long = in_node(npm, folder, "classify.mjs", "classify", [*given, LONG])
    np.testing.assert_allclose([list(one.values()) for one in found], recorded_labels(space), atol=1e-4)
    if template in AROUND:
        assert long == pytest.approx(python(folder / "snippets" / "classify.py", "classify")(LONG), abs=1e-4)
    else:
        assert f"the model takes {LIMIT}" in long
        assert "must be the whole view" in (folder / "snippets" / "classify.mjs").read_text()


@pytest.mark.parametrize("template", [*AROUND, "upper"])
def test_the_cards_code_answers_bare_inputs_and_long_ones(template, monkeypatch, capsys):
    recipe, space, folder = labels(template, "byte_level")
    facts = [space.facts("collect", DataFacts), space.facts("train", StudentFacts)]
    reading = Reading.of(recipe, table(space), facts[1], folder)
    [code] = blocks(label_card.render(recipe, *facts, reading, [{"graph": "fp32"}]))
    monkeypatch.chdir(folder)
    for text, row in zip(untidy(table(space).input), recorded_labels(space), strict=True):
        exec(code.replace('"…"', repr(text)), {})
        assert capsys.readouterr().out == f"{tiny.LABELS[row.argmax()]}\n"
    if template == "upper":
        with pytest.raises(ValueError, match=f"the model takes {LIMIT}"):
            exec(code.replace('"…"', repr(LONG)), {})
    else:
        exec(code.replace('"…"', repr(LONG)), {})
        assert capsys.readouterr().out.strip() in tiny.LABELS


@pytest.mark.parametrize("template", [*AROUND, *MORE])
def test_the_bundle_says_what_the_template_is(template):
    _, _, folder = labels(template, "byte_level")
    manifest = BundleManifest.model_validate_json((folder / NAME).read_bytes())
    source = {**AROUND, **MORE}[template]
    assert manifest.template.source == source
    assert manifest.view_limit == LIMIT
    assert "no temperature, threshold or prior" in manifest.scoring
    assert manifest.labels == tiny.LABELS
    [view] = views(bundled.recipe(contexts=contexts(source)), [manifest.example.input])
    assert manifest.example.view == view
    found = python(folder / "snippets" / "classify.py", "classify")(manifest.example.input)
    assert max(found, key=found.get) == manifest.example.label
    assert verify(folder)["example"]["input"] == manifest.example.input
    readme = (folder / "README.md").read_text()
    assert ("does not read the bare input" in readme) == (template in MORE)
    assert "Whitespace at the ends" in readme or template in MORE


def test_columns_of_a_row_are_arguments(tmp_path):
    source = "{{ title }}: {{ input }}{{ row.note | default('') }}"
    recipe, inputs = bundled.recipe(contexts=contexts(source)), bundled.texts()
    given = [f"do ba: {text}" for text in inputs]
    space = bundled.workspace(tmp_path, tokenizers_of_kind.byte_level, inputs, given)
    tiny.commit(space, "train", StageOutput([], STUDENT))
    bundle.run(recipe, space)
    file = space.folder("bundle") / "snippets" / "classify.py"
    classify = python(file, "classify")
    found = [list(classify(text, title="do ba", note=None).values()) for text in inputs]
    np.testing.assert_allclose(found, recorded_labels(space), atol=1e-5)
    done = subprocess.run([sys.executable, file, inputs[0], '{"title": "do ba"}'], capture_output=True, check=True)
    assert list(json.loads(done.stdout)["probabilities"].values()) == pytest.approx(found[0], abs=1e-5)
    manifest = BundleManifest.model_validate_json((space.folder("bundle") / NAME).read_bytes())
    assert manifest.template.variables == ("note", "title")
    assert manifest.example.input is None
    assert "`title`" in (space.folder("bundle") / "README.md").read_text()


def words_between_spaces() -> Any:
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "do": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def test_a_suffix_that_shares_a_token_with_every_input(tmp_path):
    """Nothing can be cut between the two, so a long text is refused."""
    recipe, inputs = bundled.recipe(contexts=contexts("{{ input }}!")), bundled.texts()
    space = bundled.workspace(tmp_path, words_between_spaces, inputs, views(recipe, inputs))
    bundle.run(recipe, space)
    with pytest.raises(ValueError, match=f"the model takes {bundled.MAX_LENGTH}"):
        python(space.folder("bundle") / "snippets" / "classify.py", "classify")(LONG)


def test_a_bundle_of_an_older_version_is_said_to_be_one(tmp_path):
    (tmp_path / NAME).write_text('{"format": "distillctl bundle 1"}\n')
    with pytest.raises(GateFailed, match="an older version made it"):
        verify(tmp_path)


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("builder", ["trace", "seq2seq", "genai"])
@pytest.mark.parametrize("template", ["behind", "around", "twice"])
def test_python_gives_the_recorded_answers_to_bare_inputs(template, builder):
    _, space, folder = texts(template, builder)
    inputs = untidy(table(space).input)
    answer = python(folder / "snippets" / "answer.py", "answer")
    assert [answer(text) for text in inputs] == recorded_texts(space)
    if template in AROUND:
        assert isinstance(answer(LONG), str)
        room = exported_generate.MAX_LENGTH - (0 if builder == "seq2seq" else exported_generate.MAX_NEW_TOKENS)
        assert len(python(folder / "snippets" / "answer.py", "read")(LONG)) == room
    else:
        with pytest.raises(ValueError, match="the model takes"):
            answer(LONG)


@pytest.mark.parametrize("template", ["behind", "around", "twice"])
def test_genai_reads_the_same_tokens(template):
    _, space, folder = texts(template, "genai")
    genai, plain = (python(folder / "snippets" / name, "read") for name in ("answer_genai.py", "answer.py"))
    for text in [*untidy(table(space).input), *[LONG] * (template in AROUND)]:
        assert genai(text) == plain(text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
@pytest.mark.parametrize("builder", ["trace", "seq2seq"])
@pytest.mark.parametrize("template", ["behind", "around", "twice"])
def test_javascript_gives_the_recorded_answers_to_bare_inputs(template, builder, npm):
    _, space, folder = texts(template, builder)
    given = untidy(table(space).input) if template in AROUND else table(space).simplified
    *found, long = in_node(npm, folder, "answer.mjs", "answer", [*given, LONG])
    assert found == recorded_texts(space)
    assert ("the model takes" in long) == (template not in AROUND)


PAIRS = [
    ["Delete %(name)s?", "%(name)s supprimer ?"],
    ["Delete %(name)s?", "Supprimer %(nom)s ?"],
    ["{0} of {1} & <b>{{ x }}</b>", "<b>{{ x }}</b> & {1} sur {0}"],
    ["{0} of {1}", "{0} sur {0}"],
    ["&File, R&D, &amp; ${user} 100%% %1$s %.2f", "%.2f %1$s 100%% ${user} R&D &amp; &Fichier"],
    ['<a href="x">here</a>', "<a href='x'>ici</a>"],
    ["no placeholder", "not {one}"],
    ["é %s {naïve}", "%s é {naïve}"],
]


def test_an_app_can_tell_that_an_answer_breaks_a_placeholder(npm):
    expected = [placeholders.difference(*pair) is None for pair in PAIRS]
    assert {True, False} == set(expected)
    for builder, file in (("trace", "answer.py"), ("seq2seq", "answer.py"), ("genai", "answer_genai.py")):
        fits = python(texts("behind", builder)[2] / "snippets" / file, "fits")
        assert [fits(*pair) for pair in PAIRS] == expected
    folder = texts("behind", "trace")[2]
    assert in_node(npm, folder, "answer.mjs", "fits", PAIRS) == expected
    assert "fun fits(text: String, answered: String): Boolean" in (
        texts("behind", "genai")[2] / "snippets" / "Writer.kt"
    ).read_text(encoding="utf-8")
    for path in (texts("around", "trace")[2] / "snippets").iterdir():
        assert "fits" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("builder", ["trace", "genai"])
def test_the_cards_code_writes_to_bare_inputs_and_long_ones(builder, monkeypatch, capsys):
    recipe, space, folder = texts("behind", builder)
    facts = [space.facts("collect", DataFacts), space.facts("train", GenerateTrain)]
    reading = Reading.of(recipe, table(space), facts[1], folder)
    found = blocks(text_card.render(recipe, *facts, reading, [{"graph": "fp32"}], builder))
    assert len(found) == 1 + (builder == "genai")
    monkeypatch.chdir(folder)
    for text, said in zip(untidy(table(space).input[:4]), recorded_texts(space), strict=False):
        exec(found[0].replace('"…"', repr(text)), {})
        assert capsys.readouterr().out == f"{said}\n"
    for code in found:
        exec(code.replace('"…"', repr(LONG)), {})
        assert capsys.readouterr().out


# ── every language ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["Classifier.kt", "Classifier.swift"])
def test_kotlin_and_swift_have_the_template_or_say_that_they_have_not(name, tmp_path):
    recipe, space, _ = labels("around", "byte_level")
    without = recipe.model_copy(update={"bundle": recipe.bundle.model_copy(update={"text_in": False})})
    copy = Workspace(shutil.copytree(space.root, tmp_path / "run"))
    bundle.run(without, copy)
    code = (copy.folder("bundle") / "snippets" / name).read_text()
    dollar = "\\$x" if name.endswith("kt") else "$x"
    assert f'"do \\"ba\\" {dollar}\\n"' in code
    assert '"\\n\\nda do:"' in code
    other = (labels("upper", "byte_level")[2] / "snippets" / name).read_text()
    assert "does not read the bare input" in other
    assert str(LIMIT) in other
    inside = (labels("around", "byte_level")[2] / "snippets" / name).read_text()
    assert "da do:" not in inside  # it is in the graph


def test_literals():
    odd = 'a"b\\c$d\n\r\t\0\x85\u2028\U0001f600\U000e0001'
    assert json.loads(literals.javascript(odd)) == odd
    assert literals.kotlin(odd) == '"a\\"b\\\\c\\$d\\n\\r\\t\\u0000\\u0085\\u2028\U0001f600\\udb40\\udc01"'
    assert literals.swift(odd) == '"a\\"b\\\\c$d\\n\\r\\t\\u{0}\\u{85}\\u{2028}\U0001f600\\u{e0001}"'


def test_the_report_asks_a_bare_input():
    recipe, space, _ = labels("around", "byte_level")
    usage = use.usage_facts(recipe, space, table(space), STUDENT)
    assert usage.sample == table(space).input[0]
    known = usage.given | {"artifact": "quantize/model.onnx", "name": "x", "versions": {"onnxruntime": "1"}}
    known |= {"snippets": ["classify.py", "Classifier.swift"], "inputs": ["input_ids"]}
    facts = ReportFacts.model_construct(set(known), **known)
    assert "da do:" in use.code(facts, space.root)["classify.py"]
    assert "da do:" in use.code(facts, space.root)["Classifier.swift"]


# ── tokenizers of JavaScript ─────────────────────────────────────────────────────────────────────


def odd_word_piece(lowercase: bool) -> Any:
    """WordPiece with single characters, those among them that JavaScript reads otherwise."""
    letters = "abσςοδυεαßi" + "".join((*javascript.BERT_OTHER_IDS, *javascript._LOWERED_OTHER_IDS)) + "ΟΔΥΣΕΑ"
    tokens = ["[PAD]", "[UNK]", *dict.fromkeys(letters), *(f"##{letter}" for letter in dict.fromkeys(letters))]
    backend = Tokenizer(models.WordPiece({token: id for id, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
@pytest.mark.parametrize("lowercase", [True, False])
def test_javascript_reads_greek_alike_and_what_it_reads_otherwise_is_listed(lowercase, npm, tmp_path):
    space = bundled.workspace(tmp_path, functools.partial(odd_word_piece, lowercase))
    bundle.run(bundled.recipe(), space)
    folder = space.folder("bundle")
    manifest = BundleManifest.model_validate_json((folder / NAME).read_bytes())
    other = manifest.other_ids[javascript.PACKAGE]
    tried = ["ΟΔΥΣΣΕΥΣ ΣΑΣ", "ΑΣ", "ας ασ", "ΑΣ.", "Σ", *(f"a{one}b" for one in other), *other]
    read = python(folder / "snippets" / "classify.py", "read")
    found = in_node(npm, folder, "classify.mjs", "read", tried)
    differs = [text for text, ids in zip(tried, found, strict=True) if ids != read(text)]
    assert {one for one in other if any(one in text for text in differs)} == set(other)
    assert not [text for text in differs if not any(one in text for one in other)]
    assert "\\u2e4a" in (folder / "README.md").read_text()


def test_the_text_in_graph_takes_the_bare_input():
    recipe, space, folder = labels("around", "word_piece")
    reading = Reading.of(recipe, table(space), STUDENT, folder)
    given = [*untidy(table(space).input), LONG, "", " \n"]
    assert text_in.other_ids(folder, LIMIT, given, reading.template) == []
