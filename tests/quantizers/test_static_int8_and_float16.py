"""Static int8, whose ranges come from train rows, and float16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from pydantic import ValidationError
from scipy.special import log_softmax

from distillctl.quantizers import float16, static_int8
from distillctl.quantizers.label_calibration import LabelCalibration
from distillctl.recipe import Float16, StaticInt8
from distillctl.run_dir.workspace import tree_digest
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from tests.fixtures import tiny
from tests.fixtures.quantized import same_bytes_each_time

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEXTS = tiny.texts(24)
STATIC = [StaticInt8(method=method) for method in ("minmax", "entropy", "percentile")]


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "standard"])
def graphs(request):
    return tiny.exported(fuse=request.param)


def _kl(graphs, folder) -> float:
    for path in graphs.iterdir():
        if ".onnx" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    fp32, own = (log_softmax(OnnxClassifier(one).logits(TEXTS), axis=-1) for one in (graphs, folder))
    return float((np.exp(fp32) * (fp32 - own)).sum(-1).mean())


@pytest.mark.parametrize("spec", STATIC, ids=lambda spec: spec.name)
def test_every_product_has_int8_factors_with_fixed_ranges(spec, graphs, tmp_path, capfd):
    before = tree_digest(graphs)
    static_int8.quantize(spec, graphs, tmp_path, LabelCalibration(graphs, TEXTS))
    assert tree_digest(graphs) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    graph = onnx.load(tmp_path / "model.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    weighed = [node for node in onnx.load(graphs / "model.onnx").graph.node if node.op_type in ("MatMul", "Gemm")]
    ours = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(ours) == len(weighed)
    for node in ours:  # also those behind ONNX Runtime's own operators, whose types onnx does not infer
        assert [made_by.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    scales = [node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert scales
    assert set(scales) <= constants
    assert graph_bytes(tmp_path) < graph_bytes(graphs) * 0.7
    assert 0 < _kl(graphs, tmp_path) < 0.05


def test_ranges_are_those_of_the_rows(graphs, tmp_path):
    """One row's ranges are narrower than all rows': another scale somewhere, none that is wider."""
    found = []
    for rows in (TEXTS[:1], TEXTS):
        folder = tmp_path / str(len(rows))
        folder.mkdir()
        static_int8.quantize(StaticInt8(), graphs, folder, LabelCalibration(graphs, rows))
        graph = onnx.load(folder / "model.onnx").graph
        scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
        values = {
            one.name: float(numpy_helper.to_array(one)) for one in graph.initializer if one.name in scales.values()
        }
        found.append({name: values[scale] for name, scale in scales.items()})
    one, all_ = found
    assert set(one) == set(all_)
    assert all(one[name] <= all_[name] * (1 + 1e-6) for name in one)
    assert any(one[name] < all_[name] * 0.99 for name in one)


@pytest.mark.parametrize("spec", [*STATIC, Float16()], ids=lambda spec: spec.name)
def test_the_bytes_are_the_same_each_time(spec, graphs, tmp_path):
    same_bytes_each_time(spec, graphs, tmp_path, TEXTS[:8])


def test_half_the_bytes_and_hardly_another_answer(graphs, tmp_path):
    float16.quantize(Float16(), graphs, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    large = {one.data_type for one in model.graph.initializer if np.prod(one.dims) > 1000}
    assert large == {TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph_bytes(tmp_path) < graph_bytes(graphs) * 0.65
    assert abs(_kl(graphs, tmp_path)) < 1e-5


def test_fixed_ranges_are_for_labels():
    tiny.recipe(quantize={"candidates": [{"kind": "static_int8"}]})
    with pytest.raises(ValidationError, match=r"quantize.candidates\[0\]: static_int8 is for task.kind: classify"):
        tiny.recipe(task={"kind": "generate"}, quantize={"candidates": [{"kind": "static_int8"}]})
