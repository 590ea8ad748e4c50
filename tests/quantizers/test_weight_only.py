"""Weight-only graphs: what they compute, what they store, and who can run them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import log_softmax

from distillctl.quantizers import blocks, weight_only
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import WeightOnly
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnxruntime import graph_bytes, session
from distillctl.runtimes.roofline import bytes_per_run
from tests.fixtures import exported_generate, tiny, tiny_generate
from tests.fixtures.exported_generate import exported
from tests.fixtures.quantized import same_bytes_each_time

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LLAMA = [("llama", "genai"), ("llama", "trace")]
SLOW = [("gpt2", "trace"), ("gemma3_text", "genai"), ("qwen2", "genai"), ("marian", "seq2seq")]
KINDS = [*LLAMA, ("t5", "seq2seq"), *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
SPECS = [
    WeightOnly(algorithm="rtn"),
    WeightOnly(block_size=64),
    WeightOnly(algorithm="k_quant_mixed"),
    WeightOnly(bits=8, algorithm="rtn"),
    WeightOnly(bits=8),
    WeightOnly(algorithm="gptq"),
    WeightOnly(block_size=128, pad=True),
]
FLOAT = {"accuracy_level": 1}
"""Products of floats: what is left is the weights' own error."""


class _Texts(Calibration):
    """A calibration on some texts, each the answer to the next one."""

    def log_probs(self, folder):
        return np.concatenate([log_softmax(open_generator(folder).score(*pair), axis=-1) for pair in self._pairs()])

    def feeds(self, path):
        graph = open_generator(self.source)
        return (graph.feeds(*pair)[path.name] for pair in self._pairs())

    def _pairs(self):
        ids = [open_generator(self.source).encode(text) for text in tiny_generate.texts(40, seed=2)]
        return pairwise(ids)


def _quantized(source: Path, target: Path, spec: WeightOnly) -> Path:
    """A whole folder: the graphs, and what lies beside the exported ones."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.onnx*"))
    weight_only.quantize(spec, source, target, _Texts(source))
    return target


def _nodes(folder: Path, *kinds: str) -> list[ir.Node]:
    return [node for path in sorted(folder.glob("*.onnx")) for node in ir.load(path).graph if node.op_type in kinds]


def _constants(folder: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _bits(node: ir.Node) -> int:
    return node.attributes["bits"].as_int()


# ── what is computed ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_graph_is_the_model_with_the_restored_weights(kind, spec, tmp_path, monkeypatch):
    """The exported graph with every matrix replaced by what its blocks stand for gives the same logits."""
    source = exported(*kind).folder
    spec = spec.model_copy(update=FLOAT)
    found = open_generator(_quantized(source, tmp_path / "blocks", spec))
    expected = open_generator(_with_restored_weights(source, tmp_path / "restored", spec, monkeypatch))
    for view, response in zip(tiny_generate.texts(4), tiny_generate.texts(4, seed=1), strict=True):
        ids, said = found.encode(view), found.encode(response)
        logits = expected.score(ids, said)
        np.testing.assert_allclose(found.score(ids, said), logits, atol=2e-4 * np.abs(logits).max())
        assert np.abs(logits - exported(*kind).open().score(ids, said)).max() > 1e-3  # something was rounded


def _with_restored_weights(source: Path, target: Path, spec: WeightOnly, monkeypatch) -> Path:
    """Float graphs, whose matrices went through the blocks and back; which ones did is what `quantize` chose."""
    chosen: dict[str, np.ndarray] = {}
    store = weight_only._store

    def record(rounding, graph, matrix, bits, *, joined):
        found = store(rounding, graph, matrix, bits, joined=joined)
        stored = replace(found.blocks, scales=weight_only._half(found.blocks.scales).astype(np.float32))
        restored = blocks.dequantize(stored, matrix.shape[1])
        chosen[matrix.value.name] = restored.T if matrix.transposed else restored
        return found

    shutil.copytree(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(weight_only, "_store", record)
        for path in sorted(source.glob("*.onnx")):
            chosen.clear()
            one, scratch = target / "one", target / "scratch"
            one.mkdir()
            scratch.mkdir()
            shutil.copyfile(path, one / path.name)
            weight_only.quantize(spec, one, scratch, _Texts(source))
            model = onnx.load(path)
            assert chosen
            for tensor in model.graph.initializer:
                if tensor.name in chosen:
                    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(chosen[tensor.name]), tensor.name))
            onnx.save(model, target / path.name)
            shutil.rmtree(one)
            shutil.rmtree(scratch)
    return target


def test_more_bits_and_smaller_blocks_are_closer(tmp_path):
    source = exported("llama", "trace")
    graph, errors = source.open(), {}
    view, response = (graph.encode(text) for text in tiny_generate.texts(2))
    logits = graph.score(view, response)
    for spec in (
        WeightOnly(bits=8, **FLOAT),
        WeightOnly(block_size=16, algorithm="k_quant_mixed", **FLOAT),
        WeightOnly(block_size=64, algorithm="rtn", **FLOAT),
    ):
        found = open_generator(_quantized(source.folder, tmp_path / spec.name, spec)).score(view, response)
        errors[spec.name] = np.square(found - logits).mean()
    assert list(errors.values()) == sorted(errors.values())


@pytest.mark.parametrize("kind", [("llama", "genai"), ("t5", "seq2seq")], ids="-".join)
def test_gptq_moves_the_answers_less_than_k_quant(kind, tmp_path):
    source, errors = exported(*kind), []
    for algorithm in ("gptq", "k_quant"):
        spec = WeightOnly(algorithm=algorithm, table_bits=8, **FLOAT)
        found, answers = open_generator(_quantized(source.folder, tmp_path / algorithm, spec)), source.open()
        pairs = pairwise([found.encode(text) for text in tiny_generate.texts(12, seed=5)])
        errors.append(np.mean([np.square(found.score(*pair) - answers.score(*pair)).mean() for pair in pairs]))
    assert errors[0] < errors[1]


def test_a_gemm_keeps_its_bias_and_one_that_does_more_stays_as_it_is(tmp_path):
    """y = x·Wᵀ + b in blocks; 2·x·W in float; both beside a product whose rows are too short for any block."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(24, 32)),
        "b": generator.normal(size=24),
        "v": generator.normal(size=(32, 20)),
        "short": generator.normal(size=(20, 8)),
        "last": generator.normal(size=(8, 4)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("Gemm", ["x", "v"], ["z"], alpha=2.0),
        helper.make_node("MatMul", ["z", "short"], ["s"]),
        helper.make_node("MatMul", ["s", "last"], ["t"]),
    ]
    model = _model(nodes, weights, {"x": ["n", 32]}, {"y": ["n", 24], "z": ["n", 20], "t": ["n", 4]})
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    onnx.save(model, source / "model.onnx")
    weight_only.quantize(WeightOnly(bits=8, **FLOAT), source, target)
    kinds = [node.op_type for node in ir.load(target / "model.onnx").graph]
    assert [kind for kind in kinds if kind != "Cast"] == ["MatMulNBits", "Gemm", "MatMulNBits", "MatMul"]
    x = generator.normal(size=(3, 32)).astype(np.float32)
    outputs = [session(folder / "model.onnx", 1).run(None, {"x": x}) for folder in (source, target)]
    for expected, found in zip(*outputs, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])


def test_a_table_that_blocks_do_not_divide_stays_in_float(tmp_path):
    table = np.random.default_rng(0).normal(size=(10, 40))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = _model(nodes, {"table": table}, {}, {"y": ["n", 40]}, ids=True)
    onnx.save(model, source / "model.onnx")
    weight_only.quantize(WeightOnly(), source, target)
    assert [node.op_type for node in ir.load(target / "model.onnx").graph] == ["Gather"]


def _model(nodes, weights, inputs, outputs, ids: bool = False) -> onnx.ModelProto:
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    shapes += [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])] if ids else []
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", shapes, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# ── what is stored ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", LLAMA, ids="-".join)
def test_a_tied_table_is_stored_once(kind, tmp_path):
    folder = _quantized(exported(*kind).folder, tmp_path / "graph", WeightOnly())
    constants = _constants(folder)
    (lookup,) = _nodes(folder, "GatherBlockQuantized")
    (head,) = [node for node in _nodes(folder, "MatMulNBits") if node.outputs[0].name == "logits"]
    joined = lookup.inputs[0].producer()
    assert joined.inputs[0].name == head.inputs[1].name
    assert [value.name for value in lookup.inputs[2:]] == [value.name for value in head.inputs[2:]]
    of_table = [array for array in constants.values() if array.shape[:1] == (tiny_generate.VOCABULARY,)]
    assert sorted(array.dtype.name for array in of_table) == ["float16", "uint8", "uint8"]  # scales, zeros, numbers
    assert sum(array.nbytes for array in of_table) == tiny_generate.VOCABULARY * (2 * 16 + 2 * 2 + 1)
    assert not [name for name, array in constants.items() if array.dtype == np.float32 and array.size >= 64 * 32]


def test_an_untied_table_is_a_table_of_its_own(tmp_path):
    student = exported_generate.model("llama", "trace", tie_word_embeddings=False)
    source = tmp_path / "source"
    source.mkdir()
    exported_generate.export(student, "trace", tmp_path, source)
    target = tmp_path / "target"
    target.mkdir()
    weight_only.quantize(WeightOnly(), source, target)
    numbers = [array for array in _constants(target).values() if array.shape[:1] == (tiny_generate.VOCABULARY,)]
    assert len(numbers) == 6


@pytest.mark.parametrize("kind", LLAMA, ids="-".join)
def test_every_matrix_of_a_decoder_is_in_blocks(kind, tmp_path):
    folder = _quantized(exported(*kind).folder, tmp_path / "graph", WeightOnly())
    assert not [node for node in _nodes(folder, "MatMul", "Gemm") if node.inputs[1].is_initializer()]
    assert {_bits(node) for node in _nodes(folder, "MatMulNBits", "GatherBlockQuantized")} == {4}
    graphs = [sum(path.stat().st_size for path in f.glob("*.onnx*")) for f in (folder, exported(*kind).folder)]
    assert graphs[0] < 0.4 * graphs[1]


def test_padding_keeps_the_block_size_of_inner_matrices(tmp_path):
    sizes = []
    for pad in (False, True):
        spec = WeightOnly(block_size=128, pad=pad, algorithm="gptq")
        folder = _quantized(exported("llama", "trace").folder, tmp_path / spec.name, spec)
        products = _nodes(folder, "MatMulNBits")
        inner = [node for node in products if node.attributes.get_int("N") != tiny_generate.VOCABULARY]
        assert inner
        sizes.append({node.attributes.get_int("block_size") for node in inner})
    assert max(sizes[0]) < 128
    assert sizes[1] == {128}


@pytest.mark.long
@pytest.mark.parametrize("builder", ["genai", "trace"])
def test_mixed_keeps_the_costly_ones_at_eight_bits(builder, tmp_path):
    """Of nine layers the first, the last two, and of those between every third: values, second feed-forward, table."""
    student = exported_generate.model("llama", builder, num_hidden_layers=9)
    source, folder = tmp_path / "source", tmp_path / "graph"
    exported_generate.save(student, source)
    folder.mkdir()
    exported_generate.export(student, builder, source, folder)
    target = tmp_path / "target"
    target.mkdir()
    weight_only.quantize(WeightOnly(algorithm="k_quant_mixed"), folder, target)
    products = _nodes(target, "MatMulNBits")
    assert _bits(products[-1]) == 8
    per_layer = (len(products) - 1) // 9
    first = per_layer - 5  # queries, keys and values are one product or three
    wide = [place for place, node in enumerate(products[:-1]) if _bits(node) == 8]
    layers = [0, 3, 6, 7, 8]
    assert wide == [layer * per_layer + place for layer in layers for place in (first, per_layer - 1)]
    assert _bits(_nodes(target, "GatherBlockQuantized")[0]) == 8
    shutil.rmtree(target)
    target.mkdir()
    weight_only.quantize(WeightOnly(algorithm="k_quant_mixed", table_bits=4), folder, target)
    again = _nodes(target, "MatMulNBits")
    assert [_bits(node) for node in again] == [*(_bits(node) for node in products[:-1]), 4]
    assert _bits(_nodes(target, "GatherBlockQuantized")[0]) == 4


@pytest.mark.parametrize("spec", SPECS[1:3], ids=lambda spec: spec.name)
def test_the_bytes_are_the_same_each_time(spec, tmp_path):
    same_bytes_each_time(spec, exported("llama", "trace").folder, tmp_path)


def test_the_bytes_of_a_graph_that_follows_activations_are_the_same_each_time(tmp_path):
    spec = WeightOnly(algorithm="gptq", sensitive=0.3)
    same_bytes_each_time(spec, tiny.exported(), tmp_path, tiny.texts(24))


@pytest.mark.parametrize("factor", [1e-6, 1e6], ids=["small", "large"])
def test_scales_that_float16_cannot_hold_stay_in_float32(factor, tmp_path):
    weight = np.random.default_rng(0).normal(size=(32, 24)) * factor
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    onnx.save(_model(nodes, {"w": weight}, {"x": ["n", 32]}, {"y": ["n", 24]}), source / "model.onnx")
    weight_only.quantize(WeightOnly(bits=8, **FLOAT), source, target)
    x = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    (found,) = session(target / "model.onnx", 1).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight, atol=0.02 * np.abs(x @ weight).max())


def test_a_token_reads_as_many_bytes_as_with_float32_scales(tmp_path, monkeypatch):
    """ONNX Runtime holds the scales as float32; only the file is smaller."""
    source = exported("llama", "genai").folder
    smaller = _quantized(source, tmp_path / "smaller", WeightOnly())
    monkeypatch.setattr(weight_only, "_half", lambda scales: scales)
    larger = _quantized(source, tmp_path / "larger", WeightOnly())
    assert graph_bytes(smaller) < graph_bytes(larger)
    assert bytes_per_run(smaller) == bytes_per_run(larger)


def test_weights_beside_the_graph_stay_beside_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    model = ir.load(exported("llama", "trace").folder / "model.onnx")
    ir.save(model, source / "model.onnx", external_data="model.onnx.data")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, origin in ((inside, exported("llama", "trace").folder), (outside, source)):
        folder.mkdir()
        weight_only.quantize(WeightOnly(), origin, folder)
    assert [path.name for path in inside.iterdir()] == ["model.onnx"]
    assert sorted(path.name for path in outside.iterdir()) == ["model.onnx", "model.onnx.data"]
    one, other = _constants(inside), _constants(outside)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


# ── who can run it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [("llama", "trace"), ("t5", "seq2seq")], ids="-".join)
def test_onnxs_checker_finds_nothing(kind, tmp_path):
    folder = _quantized(exported(*kind).folder, tmp_path / "graph", WeightOnly())
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(path)


@pytest.mark.parametrize("spec", SPECS[1:4], ids=lambda spec: spec.name)
def test_genai_writes_what_our_loop_writes(spec, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    folder = _quantized(exported("llama", "genai").folder, tmp_path / "graph", spec)
    own, model = open_generator(folder), genai.Model(str(folder))
    for text in tiny_generate.texts(5):
        view = own.encode(text)
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(view) + 12, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(view, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        answer = own.generate(view, 12)  # with the stop id that ended it, which genai leaves out
        said = answer[:-1] if answer[-1] in own.stop_ids else answer
        assert list(generator.get_sequence(0))[len(view) :] == said
    assert json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "model.onnx"
