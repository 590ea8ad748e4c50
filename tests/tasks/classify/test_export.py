"""export: a graph under optimum's names that says what PyTorch says, or nothing at all."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from distillctl.data import view_table
from distillctl.errors import GateFailed, RecipeError
from distillctl.graphs import exporter, tracing
from distillctl.run_dir.facts import DataFacts, GraphFacts, StudentFacts
from distillctl.run_dir.workspace import Workspace, file_digest, tree_digest
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.snippets.reading import Reading
from distillctl.stages import export
from distillctl.tasks.classify import card as label_card
from distillctl.tasks.classify import parity
from tests.fixtures import tiny

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

KINDS = {
    "bert": ["input_ids", "attention_mask", "token_type_ids"],
    "distilbert": ["input_ids", "attention_mask"],
    "llama": ["input_ids", "attention_mask"],
    "gemma3_text": ["input_ids", "attention_mask"],  # an architecture that optimum has no sizes for
}


@pytest.fixture(
    scope="module", params=["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])]
)
def exported(request) -> tuple[str, PreTrainedModel, Path]:
    """An architecture's name, its PyTorch model, and the folder with its graph."""
    return request.param, tiny.model(request.param), tiny.exported(request.param)


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> tuple[Workspace, dict]:
    """A run directory whose export is committed, and the stage's facts."""
    space = tiny.workspace(tmp_path_factory.mktemp("run"))
    outcome = export.run(tiny.recipe(), space)
    tiny.commit(space, "export", outcome)
    return space, outcome.facts.as_json()


# ── the graph ────────────────────────────────────────────────────────────────────────────────────


def test_names_and_axes_are_optimums(exported):
    kind, _, folder = exported
    session = ort.InferenceSession(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == KINDS[kind]
    assert all(value.shape == ["batch", "sequence"] for value in session.get_inputs())
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("logits", ["batch", 3])]


def test_no_symbol_and_no_path_of_the_tracer_is_left(exported):
    _, _, folder = exported
    graph = onnx.load(folder / "model.onnx").graph
    axes = {d.dim_param for v in graph.value_info for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert axes
    assert not [axis for axis in axes if re.search(r"\b[su]\d+\b", axis)]
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()


def test_parity_at_lengths_and_batches_that_were_not_traced(exported):
    _, model, folder = exported
    texts = tiny.texts(60)
    found = parity.check_parity(model, OnnxClassifier(folder), texts, texts, 1e-4)
    assert found.rows == 60
    assert found.max_logit_difference < 1e-4
    assert found.same_top == 1


def test_padding_does_not_change_an_answer(exported):
    _, _, folder = exported
    classifier, texts = OnnxClassifier(folder), tiny.texts(20)
    np.testing.assert_allclose(classifier.logits(texts), classifier.logits(texts, batch_size=20), atol=1e-5)


@pytest.mark.parametrize("exported", ["bert"], indirect=True)
def test_the_bytes_are_the_same_each_time_and_stdout_stays_empty(exported, tmp_path, capfd):
    _, model, folder = exported
    exporter.export(model, tmp_path)
    assert file_digest(tmp_path / "model.onnx") == file_digest(folder / "model.onnx")
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_weights_beyond_the_limit_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "MAX_EMBEDDED_BYTES", 1000)
    model = tiny.model()
    graph = exporter.export(model, tmp_path, opset=18)
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert (graph.bytes, graph.opset) == (sum(files.values()), 18)
    model.config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    texts = tiny.texts(8)
    assert parity.check_parity(model, OnnxClassifier(tmp_path), texts, texts, 1e-4).same_top == 1


@pytest.mark.slow
def test_an_opset_out_of_reach_is_said(tmp_path):
    with pytest.raises(RecipeError, match="opset 99"):
        exporter.export(tiny.model(), tmp_path, opset=99)


# ── parity ───────────────────────────────────────────────────────────────────────────────────────


def test_altered_weights_fail_and_the_row_is_named(exported):
    _, model, folder = exported
    altered = tiny.model(model.config.model_type)
    with torch.no_grad():
        next(p for name, p in altered.named_parameters() if "embed" in name)[10] *= -1
    texts = tiny.texts(30)
    ids = [f"row-{index}" for index in range(30)]
    with pytest.raises(GateFailed, match="is allowed") as caught:
        parity.check_parity(altered, OnnxClassifier(folder), ids, texts, 1e-4)
    assert caught.value.exit_code == 6
    assert caught.value.where in {f"row {row}" for row in ids}


class Shifted:
    """A graph whose logits are those of another, and something added to them."""

    labels = tiny.LABELS

    def __init__(self, graph: OnnxClassifier, shift: np.ndarray) -> None:
        self._graph, self._shift = graph, shift

    def feed(self, texts):
        return self._graph.feed(texts)

    def run(self, feed):
        return self._graph.run(feed) + self._shift


def _margins(graph: OnnxClassifier, texts: list[str]) -> np.ndarray:
    second, first = np.sort(graph.logits(texts), axis=-1)[:, -2:].T
    return first - second


@pytest.mark.parametrize("exported", ["bert"], indirect=True)
def test_a_tie_is_counted_and_a_changed_label_is_not_forgiven(exported):
    _, model, folder = exported
    graph, texts = OnnxClassifier(folder), tiny.texts(60)
    margins = _margins(graph, texts)
    row = int(margins.argmin())
    logits = graph.logits([texts[row]])[0]
    # Lift the second label of the row with the smallest margin just above the first.
    shift = np.zeros(3, np.float32)
    shift[np.argsort(logits)[-2]] = margins[row] * 1.01
    found = parity.check_parity(model, Shifted(graph, shift), texts, texts, allowed=float(margins[row]) * 1.02)
    assert found.ties >= 1
    assert found.same_top == 1 - found.ties / 60
    # Both moved by less than what is allowed, but the margin is wider than that: no tie.
    shift[np.argsort(logits)[-2]] = margins[row] * 0.51
    shift[np.argsort(logits)[-1]] = -margins[row] * 0.51
    with pytest.raises(GateFailed, match="the top label differs"):
        parity.check_parity(model, Shifted(graph, shift), [texts[row]], [texts[row]], allowed=float(margins[row]) * 0.6)


@pytest.mark.parametrize("exported", ["bert"], indirect=True)
def test_nan_is_no_agreement(exported):
    _, model, folder = exported
    texts = tiny.texts(5)
    with pytest.raises(GateFailed, match="nan"):
        parity.check_parity(model, Shifted(OnnxClassifier(folder), np.float32("nan")), texts, texts, 1e-4)


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_commits_the_whole_folder(committed):
    space, facts = committed
    files = {"README.md", "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert set(space.manifest("export").outputs) == files
    assert {path.name for path in space.folder("export").iterdir()} == files | {"manifest.json"}
    assert facts["bytes"] == (space.folder("export") / "model.onnx").stat().st_size
    assert facts["max_logit_difference"] < 1e-4
    assert (facts["same_top"], facts["rows"], facts["inputs"]) == (1.0, 40, KINDS["bert"])


def test_the_folder_runs_as_its_card_says(committed, monkeypatch):
    """The card's code, with onnxruntime and tokenizers alone; what transformers loads agrees with it."""
    space, _ = committed
    monkeypatch.chdir(space.folder("export"))
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.S)[1]
    text = tiny.texts(1)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace('"…"', repr(text)), {})
    assert printed.getvalue().strip() == tiny.LABELS[int(tiny.log_probs(tiny.model(), [text]).argmax())]


def test_other_tools_load_the_folder(committed):
    space, _ = committed
    folder = space.folder("export")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded, text = AutoTokenizer.from_pretrained(folder), tiny.texts(1)[0]
    assert loaded.model_input_names == KINDS["bert"]
    assert loaded.pad_token == "[PAD]"
    assert loaded(text).input_ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert AutoConfig.from_pretrained(folder).id2label == dict(enumerate(tiny.LABELS))


def _loaded(path: Path, folder: Path) -> list[str]:
    """The operators ONNX Runtime makes of a graph when it loads it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_attention_is_one_operator_a_layer_and_norms_stay_apart(kind, tmp_path):
    model = tiny.model(kind)
    before = model.config._attn_implementation
    exporter.export(model, tmp_path)
    operators = _loaded(tmp_path / "model.onnx", tmp_path)
    assert operators.count("MultiHeadAttention") == 2
    assert operators.count("LayerNormalization") == 5
    assert "Softmax" not in operators
    assert model.config._attn_implementation == before  # it is compared with the graph afterwards


def test_without_fusion_only_standard_operators_and_the_same_answers(exported):
    kind, _, folder = exported
    standard = tiny.exported(kind, fuse=False)
    assert {entry.domain for entry in onnx.load(standard / "model.onnx").opset_import} == {""}
    texts = tiny.texts(5)
    fused, plain = (OnnxClassifier(path).logits(texts, batch_size=5) for path in (folder, standard))
    np.testing.assert_allclose(fused, plain, atol=1e-5)


def test_what_is_masked_in_another_way_is_traced_as_it_is(tmp_path):
    assert "MultiHeadAttention" not in _loaded(tiny.exported("llama") / "model.onnx", tmp_path)


def test_a_graph_that_is_wrong_commits_nothing(committed, tmp_path, monkeypatch):
    first, facts = committed
    space = Workspace(shutil.copytree(first.root, tmp_path / "run"))
    before = tree_digest(space.root)

    def wrong(model, folder, opset=None, *, fuse):
        proto = onnx.load(first.folder("export") / "model.onnx")
        weight = next(tensor for tensor in proto.graph.initializer if "classifier" in tensor.name)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * -1, weight.name))
        onnx.save(proto, folder / "model.onnx")
        return GraphFacts(inputs=facts["inputs"], opset=facts["opset"], bytes=facts["bytes"])

    monkeypatch.setattr(exporter, "export", wrong)
    with pytest.raises(GateFailed, match="row"):
        export.run(tiny.recipe(), space)
    assert tree_digest(space.root) == before


def test_the_card_quotes_no_row_and_says_what_it_cannot_know(committed):
    space, _ = committed
    card = (space.folder("export") / "README.md").read_text(encoding="utf-8")
    assert "license:" not in card
    assert "| teacher | teacher | not stated |" in card
    assert not [text for text in tiny.texts(40) if text.count(" ") > 2 and text in card]


def test_the_card_quotes_a_licence_and_shows_the_form_of_the_text(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    recipe = tiny.recipe(
        student={"kind": "pretrained", "model": str(tmp_path / "base")},
        contexts={"full": {"template": "{{ input }}"}, "simplified": {"template": "Q: {{ input }}"}},
    )
    space = tiny.workspace(tmp_path / "run", rows=4)
    facts = [space.facts("collect", DataFacts), space.facts("train", StudentFacts)]
    tokenizer = space.folder("train") / "model"
    reading = Reading.of(
        recipe, view_table.read(space.folder("collect") / "views.parquet", "eval"), facts[1], tokenizer
    )
    text = label_card.render(recipe, *facts, reading, [{"graph": "fp32"}])
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "Q: {{ input }}" in text
