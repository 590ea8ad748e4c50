"""Weights in blocks: how far from the true ones, how they are packed, and what cannot be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

from distillctl.quantizers import blocks
from distillctl.quantizers.blocks import Blocks

WAYS = [blocks.rtn, blocks.k_quant]
BITS = [4, 8]

_weights = st.tuples(st.integers(1, 5), st.integers(1, 70)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-8, 8, width=32, allow_subnormal=False))
)


def _matrix(rows: int = 64, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def _in_blocks(array: np.ndarray, size: int) -> np.ndarray:
    """[N, K] → [N, blocks, size], padded with zeros."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % size))).reshape(len(array), -1, size)


@settings(deadline=None)
@given(weight=_weights, bits=st.sampled_from(BITS), size=st.sampled_from([16, 32]))
def test_rounding_to_nearest_is_off_by_half_a_step_at_most(weight, bits, size):
    """But at the end of the scale that has one number less: there by one step."""
    found = blocks.rtn(weight, bits, size)
    error = _in_blocks(np.abs(blocks.dequantize(found, weight.shape[1]) - weight), size)
    step = np.abs(found.scales)[..., None]
    at_end = _in_blocks(weight, size) / found.scales[..., None] > 2 ** (bits - 1) - 1.5
    assert (error <= step * np.where(at_end, 1, 0.5) * (1 + 1e-5) + 1e-30).all()


@settings(deadline=None)
@given(weight=_weights, bits=st.sampled_from(BITS), way=st.sampled_from(WAYS))
def test_the_restored_weights_are_finite_and_stay_near_the_block(weight, bits, way):
    found = blocks.dequantize(way(weight, bits, 16), weight.shape[1])
    assert found.shape == weight.shape
    assert np.isfinite(found).all()
    widest = np.abs(_in_blocks(weight, 16)).max(-1, keepdims=True)
    assert (np.abs(_in_blocks(found, 16)) <= 2 * widest + 1e-30).all()


@settings(deadline=None)
@given(weight=_weights, bits=st.sampled_from(BITS))
def test_what_was_rounded_once_is_not_changed_again(weight, bits):
    once = blocks.dequantize(blocks.rtn(weight, bits, 16), weight.shape[1])
    twice = blocks.dequantize(blocks.rtn(once, bits, 16), weight.shape[1])
    np.testing.assert_allclose(twice, once, rtol=1e-5, atol=1e-30)


@settings(deadline=None)
@given(
    numbers=arrays(np.uint8, (3, 4, 16), elements=st.integers(0, 15)),
    zeros=arrays(np.uint8, (3, 4, 1), elements=st.integers(0, 15)),
    scale=st.floats(0.01, 10),
)
def test_k_quant_finds_weights_that_lie_on_a_grid(numbers, zeros, scale):
    """To within rounding: the search tries the block's own range, where the grid's ends are in use."""
    numbers[..., 0], numbers[..., 1] = 0, 15
    weight = ((numbers.astype(np.float32) - zeros) * np.float32(scale)).reshape(3, -1)
    found = blocks.dequantize(blocks.k_quant(weight, 4, 16), 64)
    assert np.abs(found - weight).max() <= scale * 0.75


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_k_quant_has_less_error_than_rounding_and_than_onnxruntimes_search(bits, size):
    """The error that all of them lower: squared, larger weights counting more."""
    weight = _matrix(256, 128)
    x = _in_blocks(weight, size)
    importance = np.sqrt(np.square(x).mean(-1, keepdims=True)) + np.abs(x)

    def error(restored: np.ndarray) -> float:
        return float((importance * np.square(_in_blocks(restored, size) - x)).sum())

    numbers, scale, zero = quant_tensor_k_quant_cpu(weight, bits, size)
    theirs = ((numbers - zero) * scale).reshape(weight.shape)
    ours = error(blocks.dequantize(blocks.k_quant(weight, bits, size), 128))
    assert ours < error(blocks.dequantize(blocks.rtn(weight, bits, size), 128))
    assert ours < error(theirs)


@pytest.mark.parametrize("way", WAYS)
def test_zeros_stay_zeros(way):
    weight = np.zeros((2, 32), np.float32)
    assert (blocks.dequantize(way(weight, 4, 16), 32) == 0).all()


def test_four_bits_are_packed_lower_half_first():
    """Of the block −8 … 7, whose furthest weight is −8: the number of weight w is w + 8."""
    found = blocks.rtn(np.arange(-8, 8, dtype=np.float32)[None], 4, 16)
    assert found.scales.tolist() == [[1.0]]
    assert found.packed.tolist() == [[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]]
    assert found.zero_points is None


def test_zero_points_share_a_byte_lower_half_first_and_an_odd_one_stands_alone():
    packed = np.zeros((1, 3, 8), np.uint8)
    found = Blocks(4, 16, packed, np.ones((1, 3), np.float32), np.array([[0x21, 0x03]], np.uint8))
    assert blocks.dequantize(found, 48)[0, ::16].tolist() == [-1.0, -2.0, -3.0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("way", "zero_point"), [(blocks.rtn, False), (blocks.k_quant, True)])
def test_the_shapes_are_matmulnbits(way, zero_point, bits):
    found = way(_matrix(5, 80), bits, 32)
    assert (found.packed.dtype, found.packed.shape) == (np.uint8, (5, 3, 32 * bits // 8))
    assert (found.scales.dtype, found.scales.shape) == (np.float32, (5, 3))
    if zero_point:
        assert (found.zero_points.dtype, found.zero_points.shape) == (np.uint8, (5, -(-3 * bits // 8)))
    else:
        assert found.zero_points is None


def test_a_matrix_is_rounded_in_parts_as_at_once(monkeypatch):
    weight = _matrix()
    whole = blocks.k_quant(weight, 4, 32)
    monkeypatch.setattr(blocks, "_ROWS", 7 * 96)
    parts = blocks.k_quant(weight, 4, 32)
    for name in ("packed", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize(("columns", "size"), [(576, 64), (640, 128), (1536, 128), (48, 16), (40, 16), (100, 16)])
def test_blocks_are_cut_to_fit(columns, size):
    assert blocks.fitting(128, columns) == size
