"""Round weights to small integers in blocks with one scale each, in numpy.

ONNX Runtime also has both ways of rounding. Its `k_quant` searches for fractional zero points and rounds them at the
end: at 4 bits in blocks of 32, SmolLM2-135M is then 0.335 nats per token from fp32 on its own answers and 0.479 on
prose, with the search here 0.297 and 0.336 (mixed with 8 bits 0.171 and 0.209, here 0.124 and 0.140). It also pads rows
of 576 to 640 for blocks of 128; here the block shrinks, unless the recipe asks for padding. Its third way,
half-quadratic quantization (HQQ), only moves zero points by fractions of a step: `MatMulNBits` then does not use its
int8 kernels, and rounding the zero points to whole numbers restores those it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SMALLEST = 16
"""Shortest block that ONNX Runtime's operators support."""
_ROWS = 4_000_000
"""Weights processed at once: a whole embedding would take gigabytes."""
_SHRINK = np.linspace(0.8, 1.05, 8, dtype=np.float32)
"""Candidate ranges of a block: clipping its largest weights can help the others."""


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in blocks along K, weight = scale · (number − zero point), in the layout of MatMulNBits.

    packed: uint8 [N, blocks, block_size · bits / 8]; two 4-bit numbers per byte, the lower half first; K is padded to
    whole blocks. scales: float32 [N, blocks]. zero_points: uint8 [N, ⌈blocks · bits / 8⌉]; None: 2^(bits−1) everywhere.
    """

    bits: int
    block_size: int
    packed: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None


def fitting(block_size: int, k: int) -> int:
    """Return the longest block of at most ``block_size`` that divides K; `SMALLEST` if none does.

    Otherwise padding would be stored, and read for every token.
    """
    while block_size > SMALLEST and k % block_size:
        block_size //= 2
    return block_size


def rtn(weight: np.ndarray, bits: int, block_size: int) -> Blocks:
    """Round to nearest: the weight furthest from zero becomes −2^(bits−1), with the scale's sign; no zero points."""
    return in_parts(_rtn, weight, bits, block_size)


def k_quant(weight: np.ndarray, bits: int, block_size: int) -> Blocks:
    """Find each block's scale and zero point of the least squared error, where larger weights count more.

    After llama.cpp's k-quants (error weighted by root mean square + |w|, least-squares scale for every trial), but the
    search uses whole zero points instead of rounding them afterwards.
    """
    return in_parts(search, weight, bits, block_size)


def dequantize(blocks: Blocks, k: int) -> np.ndarray:
    """Return the weights [N, K] that the blocks represent, float32."""
    n = len(blocks.packed)
    numbers = _unpacked(blocks.packed.reshape(n, -1), blocks.bits).reshape(n, -1, blocks.block_size).astype(np.float32)
    zero = np.full((1, 1, 1), 2 ** (blocks.bits - 1), np.float32)
    if blocks.zero_points is not None:
        zero = _unpacked(blocks.zero_points, blocks.bits)[:, : blocks.scales.shape[1], None].astype(np.float32)
    weights: np.ndarray = ((numbers - zero) * blocks.scales[..., None]).reshape(n, -1)[:, :k]
    return weights


# ── rounding blocks ──────────────────────────────────────────────────────────────────────────────

Rounded = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Numbers uint8 [N, blocks, block_size], scales float32 [N, blocks, 1], zero points uint8 [N, blocks, 1] or None."""


def _rtn(x: np.ndarray, bits: int) -> Rounded:
    half = 2 ** (bits - 1)
    furthest = np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)
    scale = _or_one(furthest / np.float32(-half))
    return (np.rint(x / scale) + half).clip(0, 2 * half - 1).astype(np.uint8), scale, None


def search(x: np.ndarray, bits: int) -> Rounded:
    """Round blocks [N, blocks, block_size] as `k_quant` does."""
    top = np.float32(2**bits - 1)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    importance = np.sqrt(np.square(x).mean(-1, keepdims=True)) + np.abs(x)
    weighted = importance * x
    best = [np.full_like(low, np.inf), np.ones_like(low), np.zeros_like(low)]  # error, scale, zero point
    for shrink in _SHRINK:
        trial = _or_one((high - low) / top * shrink)
        middle = np.rint(top / 2 - (low + high) / 2 / trial)
        for offset in (-1, 0, 1):
            zero = (middle + np.float32(offset)).clip(0, top)
            steps = (np.rint(x / trial) + zero).clip(0, top) - zero
            along = (weighted * steps).sum(-1, keepdims=True)
            length = (importance * np.square(steps)).sum(-1, keepdims=True)
            scale = np.divide(along, length, out=trial.copy(), where=(length > 0) & (along > 0))
            error = scale * (scale * length - 2 * along)  # without the constant term
            better = error < best[0]
            for kept, value in zip(best, (error, scale, zero), strict=True):
                np.copyto(kept, value, where=better)
    _, scale, zero = best
    return (np.rint(x / scale) + zero).clip(0, top).astype(np.uint8), scale, zero.astype(np.uint8)


def _or_one(scale: np.ndarray) -> np.ndarray:
    """Avoid a scale of 0 for a block of zeros."""
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32)


# ── storage ──────────────────────────────────────────────────────────────────────────────────────


def in_parts(round_: Callable[[np.ndarray, int], Rounded], weight: np.ndarray, bits: int, block_size: int) -> Blocks:
    """Return a matrix [N, K] in blocks. round_: rounds the blocks of some rows, each row for itself."""
    n, k = weight.shape
    blocks = -(-k // block_size)
    rows = max(1, _ROWS // (blocks * block_size))
    packed, scales, zeros = [], [], []
    for start in range(0, n, rows):
        part = weight[start : start + rows].astype(np.float32)
        x = np.pad(part, ((0, 0), (0, blocks * block_size - k))).reshape(len(part), blocks, block_size)
        numbers, scale, zero = round_(x, bits)
        packed.append(_packed(numbers, bits))
        scales.append(scale[..., 0])
        if zero is not None:
            zeros.append(_packed(np.pad(zero[..., 0], ((0, 0), (0, blocks % 2))), bits)[:, : -(-blocks * bits // 8)])
    zero_points = np.concatenate(zeros) if zeros else None
    return Blocks(bits, block_size, np.concatenate(packed), np.concatenate(scales), zero_points)


def _packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack uint8 […, n] into uint8 […, n · bits / 8]."""
    return numbers if bits == 8 else numbers[..., ::2] | (numbers[..., 1::2] << 4)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
