"""Which matrices keep more bits: measured one at a time, on a copy, and spent where a byte saves most."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError
from scipy.special import log_softmax

from distillctl.quantizers import weight_only
from distillctl.quantizers.label_calibration import LabelCalibration
from distillctl.quantizers.sensitivity import Cost, costliest
from distillctl.recipe import WeightOnly
from distillctl.run_dir.workspace import tree_digest
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from tests.fixtures import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEXTS = tiny.texts(24)


@pytest.fixture(scope="module")
def graphs():
    return tiny.exported()


def _weights(folder) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(folder / "model.onnx").graph.initializer}


def test_a_cost_is_the_divergence_of_the_graph_with_that_matrix_changed(graphs, tmp_path):
    name, array = next((name, array) for name, array in _weights(graphs).items() if array.shape == (32, 64))
    before = tree_digest(graphs)
    calibration = LabelCalibration(graphs, TEXTS)
    found = calibration.costs("x", graphs / "model.onnx", {name: lambda: array * 0})
    assert tree_digest(graphs) == before
    changed = shutil.copytree(graphs, tmp_path / "changed")
    proto = onnx.load(changed / "model.onnx")
    weight = next(one for one in proto.graph.initializer if one.name == name)
    weight.CopyFrom(numpy_helper.from_array(array * 0, name))
    onnx.save(proto, changed / "model.onnx")
    fp32, own = (log_softmax(OnnxClassifier(folder).logits(TEXTS), axis=-1) for folder in (graphs, changed))
    assert found[name].kl == pytest.approx((np.exp(fp32) * (fp32 - own)).sum(-1).mean(), rel=1e-4)
    assert found[name].weights == 32 * 64


def test_each_trial_leaves_the_others_weights_as_they_were(graphs):
    matrices = {name: array for name, array in _weights(graphs).items() if array.shape == (32, 64)}
    assert len(matrices) == 2
    calibration = LabelCalibration(graphs, TEXTS)
    path = graphs / "model.onnx"
    same = calibration.costs("same", path, {name: lambda array=array: array for name, array in matrices.items()})
    assert {cost.kl for cost in same.values()} == {0.0}
    zeros = {name: lambda array=array: array * 0 for name, array in matrices.items()}
    together = calibration.costs("both", path, zeros)
    for name, trial in zeros.items():
        assert calibration.costs(name, path, {name: trial})[name] == together[name]


def test_what_was_measured_is_not_measured_again(graphs):
    name, array = next((name, array) for name, array in _weights(graphs).items() if array.shape == (32, 64))
    asked = []

    def trial() -> np.ndarray:
        asked.append(name)
        return array * 0

    calibration = LabelCalibration(graphs, TEXTS)
    for _ in range(2):
        calibration.costs("once", graphs / "model.onnx", {name: trial})
    assert asked == [name]


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
)
def test_the_costliest_per_weight_come_first_and_no_more_than_their_share(figures, share):
    costs = {name: Cost(kl, weights) for name, (kl, weights) in figures.items()}
    kept = costliest(costs, share)
    worst = max(cost.kl / cost.weights for cost in costs.values())
    assert any(costs[name].kl / costs[name].weights == worst for name in kept)
    assert len(kept) == 1 or sum(costs[name].weights for name in kept) <= share * sum(c.weights for c in costs.values())


def test_sensitive_matrices_keep_eight_bits_and_the_graph_is_closer_for_it(graphs, tmp_path):
    calibration, found = LabelCalibration(graphs, TEXTS), {}
    for share in (0.0, 0.5):
        folder = shutil.copytree(graphs, tmp_path / str(share))
        weight_only.quantize(WeightOnly(sensitive=share, table_bits=8), graphs, folder, calibration)
        nodes = [node for node in onnx.load(folder / "model.onnx").graph.node if node.op_type == "MatMulNBits"]
        bits = [next(one.i for one in node.attribute if one.name == "bits") for node in nodes]
        found[share] = bits.count(8), graph_bytes(folder), calibration.log_probs(folder)
    fp32 = calibration.log_probs(graphs)
    divergence = {share: (np.exp(fp32) * (fp32 - own)).sum(-1).mean() for share, (_, _, own) in found.items()}
    assert found[0.0][0] < found[0.5][0]
    assert found[0.0][1] < found[0.5][1]
    assert divergence[0.5] < divergence[0.0]


@pytest.mark.parametrize("more", [{"bits": 8}, {"algorithm": "k_quant_mixed"}])
def test_only_one_way_to_say_what_keeps_eight_bits(more):
    with pytest.raises(ValidationError, match="sensitive"):
        WeightOnly(sensitive=0.5, **more)
