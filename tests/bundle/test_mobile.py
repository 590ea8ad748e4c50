"""onnxruntime's check for phones: its verdict, and what it advises."""

import onnx
from onnx import TensorProto, helper

from distillctl.bundle import mobile


def graph(tmp_path, kind, shape):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")]
    made = helper.make_graph([helper.make_node(kind, ["a"], ["b"])], "one", values[:1], values[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "a.onnx")
    return mobile.check_usability(tmp_path / "a.onnx")


def test_a_graph_that_the_providers_take(tmp_path):
    found = graph(tmp_path, "Relu", [1, 4])
    assert found["NNAPI"]["as_is"] == {"verdict": "yes", "nodes_taken": 1, "nodes": 1, "pieces": 1}
    assert mobile.advice(found).startswith("compare NNAPI")


def test_one_that_they_take_only_with_fixed_shapes(tmp_path):
    found = graph(tmp_path, "Relu", ["batch", 4])
    assert found["NNAPI"]["as_is"]["verdict"] == "no"
    assert found["NNAPI"]["fixed_shapes"]["verdict"] == "yes"
    assert "fix the graph's shapes" in mobile.advice(found)


def test_one_that_none_takes(tmp_path):
    found = graph(tmp_path, "Det", [1, 4, 4])
    assert found["NNAPI"]["unknown_operators"] == ["ai.onnx:Det"]
    assert mobile.advice(found).startswith("use the CPU provider; NNAPI and CoreML")


def test_one_that_the_check_does_not_read(tmp_path, capfd):
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    found = mobile.check_usability(tmp_path / "a.onnx")
    assert found == {}
    assert "cannot read a.onnx" in capfd.readouterr().err
    assert "could not read the graph" in mobile.advice(found)
