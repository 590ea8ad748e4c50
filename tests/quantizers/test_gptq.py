"""GPTQ: less error of the product than rounding each weight for itself, on the inputs that it was shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.quantizers import blocks
from distillctl.quantizers.gptq import gptq


def _weight(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def _moment(columns: int, seed: int, directions: int) -> np.ndarray:
    """The mean of x·xᵀ over inputs that mostly lie in a few directions."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(200, directions)) @ generator.normal(size=(directions, columns))
    inputs = mixed + 0.1 * generator.normal(size=mixed.shape)
    return inputs.T @ inputs / len(inputs)


def _error(weight: np.ndarray, found: blocks.Blocks, moment: np.ndarray) -> float:
    """The mean of |W·x − Q·x|² over the inputs."""
    difference = (blocks.dequantize(found, weight.shape[1]) - weight).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", difference, moment, difference))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), size=st.sampled_from([16, 32, 64]), bits=st.sampled_from([4, 8]))
def test_the_product_has_less_error_than_with_weights_rounded_alone(seed, size, bits):
    weight, moment = _weight(24, 128, seed), _moment(128, seed + 1, directions=8)
    alone = _error(weight, blocks.k_quant(weight, bits, size), moment)
    assert _error(weight, gptq(weight, bits, size, moment), moment) < 0.5 * alone


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), columns=st.integers(1, 100), bits=st.sampled_from([4, 8]))
def test_with_uncorrelated_inputs_nothing_is_made_up_for(seed, columns, bits):
    weight = _weight(5, columns, seed)
    moment = np.diag(np.random.default_rng(seed).uniform(0.1, 2, columns))
    found, expected = gptq(weight, bits, 16, moment), blocks.k_quant(weight, bits, 16)
    np.testing.assert_array_equal(found.packed, expected.packed)
    np.testing.assert_array_equal(found.scales, expected.scales)
    np.testing.assert_array_equal(found.zero_points, expected.zero_points)


def test_the_order_of_the_columns_does_not_matter():
    weight, moment, order = _weight(24, 64), _moment(64, 3, directions=5), np.random.default_rng(7).permutation(64)
    found = blocks.dequantize(gptq(weight, 4, 64, moment), 64)
    shuffled = blocks.dequantize(gptq(weight[:, order], 4, 64, moment[np.ix_(order, order)]), 64)
    np.testing.assert_allclose(shuffled, found[:, order], atol=1e-5)


def test_rows_do_not_depend_on_each_other():
    weight, moment = _weight(7, 96), _moment(96, 3, directions=5)
    whole = blocks.dequantize(gptq(weight, 4, 32, moment), 96)
    alone = np.concatenate([blocks.dequantize(gptq(row[None], 4, 32, moment), 96) for row in weight])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


@pytest.mark.parametrize("moment", [np.zeros((40, 40)), np.ones((40, 40)), np.eye(40) * 1e-20], ids=["0", "1", "tiny"])
def test_inputs_that_say_little_give_finite_weights(moment):
    weight = _weight(3, 40)
    found = blocks.dequantize(gptq(weight, 4, 16, moment), 40)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2 * np.abs(weight).max()
