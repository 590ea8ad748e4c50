"""The row that is read is computed alone, and no value of it changes."""

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir
import onnxruntime as ort
import pytest

from distillctl.graphs import exporter, last_layer_pruning
from distillctl.runtimes.onnxruntime import session
from tests.fixtures import tiny

pytestmark = pytest.mark.slow

HEAD = '<ir_version: 10, opset_import: ["" : 20]> graph (float[B, T, 4] x) => (float[B, 4] y{more}) '
WEIGHTS = (
    "<float[4, 4] w = {1,2,0,1, 0,3,1,1, 2,1,1,0, 1,1,2,1}, float[4] b = {1,-2,3,0}, float[4] g = {1,2,1,2}, "
    "float[1, 3, 4] places = {0,1,2,3,4,5,6,7,8,9,10,11}, float[3, 4] every = {0,1,2,3,4,5,6,7,8,9,10,11}, "
    "int64 row = {at}, int64 last = {2}, int64[1] tokens = {1}>"
)
BLOCK = "h = MatMul(x, w) a = Add(h, b) r = Relu(a) s = Sum(r, x) n = LayerNormalization<axis = -1>(s, g, b) "
READ = "y = Gather<axis = 1>(n, row)"


def _model(body: str, at: int = 0, more: str = "") -> onnx_ir.Model:
    text = HEAD.replace("{more}", more) + WEIGHTS.replace("{at}", f"{{{at}}}") + "{" + body + "}"
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def _answers(model: onnx_ir.Model) -> list[np.ndarray]:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)  # the shapes that are noted are those of the values
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})


def _alone(model: onnx_ir.Model) -> set[str]:
    """The nodes that make one row."""
    return {str(n.op_type) for n in model.graph for v in n.outputs if v.shape and len(v.shape) == 3 and v.shape[1] == 1}


@pytest.mark.parametrize("at", [0, 1, -1])
@pytest.mark.parametrize(
    ("body", "more", "alone"),
    [
        (BLOCK + READ, "", {"Gather", "MatMul", "Add", "Relu", "Sum", "LayerNormalization"}),
        (
            BLOCK + READ + " z = ReduceMean<keepdims = 0>(s)",
            ", float[] z",
            {"Gather", "LayerNormalization"},
        ),  # s is read whole
        (BLOCK + "m = Softmax<axis = 1>(n) y = Gather<axis = 1>(m, row)", "", set()),  # over the rows
        (BLOCK + "m = ReduceMean<keepdims = 0>(n, tokens) y = Identity(m)", "", set()),
        (BLOCK + "y = ReduceSum<keepdims = 0>(n, tokens)", "", set()),
        ("p = Add(x, places) n = Relu(p) " + READ, "", {"Gather", "Relu"}),  # another bias on every row
        ("p = LayerNormalization<axis = 1>(x, every) n = Relu(p) " + READ, "", {"Gather", "Relu"}),
        ("n = Relu(x) " + READ, "", {"Gather", "Relu"}),
        ("n = Identity(x) y = Gather<axis = 1>(x, row)", "", set()),
        (
            "a = Relu(x) c = Tanh(x) y = Gather<axis = 1>(a, row) z = Gather<axis = 1>(c, last)",
            ", float[B, 4] z",
            {"Gather", "Relu", "Tanh"},
        ),
    ],
)
def test_the_answers_are_the_same_and_one_row_is_computed(body, more, alone, at):
    model = _model(body, at, more)
    before = _answers(model)
    last_layer_pruning.compute_alone(model.graph)
    assert _alone(model) == alone
    for left, right in zip(before, _answers(model), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fuse", [True, False])
def test_of_an_encoders_last_layer_one_row(kind, fuse, tmp_path, monkeypatch):
    pruned = tiny.exported(kind, fuse)
    alone = onnx.shape_inference.infer_shapes(onnx.load(pruned / "model.onnx")).graph
    rows = {v.name for v in alone.value_info if [d.dim_value for d in v.type.tensor_type.shape.dim][1:2] == [1]}
    products = [node for node in alone.node if node.op_type == "MatMul" and node.output[0] in rows]
    assert len(products) == (4 if fuse else 3)  # query, output, and the two of the feed-forward block
    monkeypatch.setattr(last_layer_pruning, "compute_alone", lambda graph: None)
    exporter.export(tiny.model(kind), tmp_path, fuse=fuse)
    ids = np.random.default_rng(0).integers(4, tiny.VOCABULARY, (3, 9))
    feed = {"input_ids": ids, "attention_mask": np.arange(9) < [[9], [4], [1]], "token_type_ids": ids % 2}
    answers = []
    for folder in (pruned, tmp_path):
        opened = session(folder / "model.onnx", threads=1)
        answers.append(
            opened.run(["logits"], {value.name: feed[value.name].astype(np.int64) for value in opened.get_inputs()})[0]
        )
    np.testing.assert_allclose(*answers, atol=1e-5)
