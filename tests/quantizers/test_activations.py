"""The second moments of what reaches matrices."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distillctl.quantizers.activations import second_moments


@pytest.fixture
def graph(tmp_path):
    """y = relu(x·first)·second·second: one matrix is used twice."""
    generator = np.random.default_rng(0)
    weights = {"first": generator.normal(size=(6, 4)), "second": generator.normal(size=(4, 4))}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("MatMul", ["c", "second"], ["y"]),
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    shape = ["batch", "tokens", 6]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", 4])]
    made = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx", weights


def test_moments_are_means_over_all_tokens_and_all_uses(graph):
    path, weights = graph
    generator = np.random.default_rng(1)
    rows = [generator.normal(size=(1, tokens, 6)).astype(np.float32) for tokens in (1, 5, 3)]
    found = second_moments(path, {"first": ["x"], "second": ["b", "c"]}, ({"x": row} for row in rows))
    b = np.maximum(np.concatenate(rows, 1)[0] @ weights["first"], 0)
    c = b @ weights["second"]
    both = np.concatenate([b, c])
    np.testing.assert_allclose(found["second"], both.T @ both / 18, rtol=1e-4)
    x = np.concatenate(rows, 1)[0]
    np.testing.assert_allclose(found["first"], x.T @ x / 9, rtol=1e-4)
