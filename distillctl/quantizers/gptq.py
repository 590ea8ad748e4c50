"""Round a matrix column by column, and let later columns make up for the error of earlier ones (GPTQ).

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1.
What counts is the error of the product W·x on inputs that occur, and not that of the weights: inputs are correlated, so
a column that is not rounded yet can make up for the error of one that is. Each block gets its scale and zero point from
`blocks.k_quant` when its turn comes, on its corrected weights.

ONNX Runtime also has this algorithm; it rounds the result a second time, with other scales.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.linalg import cholesky

from distillctl.quantizers import blocks
from distillctl.quantizers.blocks import Blocks, Rounded

_DAMPING = 0.01
"""What is added to the diagonal, as a share of its mean (Frantar et al. 2023, section 3.3)."""


def gptq(weight: np.ndarray, bits: int, block_size: int, moment: np.ndarray) -> Blocks:
    """Round a matrix [N, K]. moment: mean of x·xᵀ over the inputs x of its product, [K, K]."""
    padded = np.pad(moment.astype(np.float64), (0, -len(moment) % block_size))
    factor = _factor(padded).astype(np.float32)
    return blocks.in_parts(functools.partial(_round, factor=factor), weight, bits, block_size)


def _factor(moment: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with UᵀU = (moment + damping)⁻¹, which says how columns correct each other."""
    diagonal = np.diag_indices(len(moment))
    damped = moment.copy()
    damped[diagonal] += _DAMPING * (moment[diagonal].mean() or 1.0)
    factor: np.ndarray = cholesky(np.linalg.inv(damped))
    return factor


def _round(x: np.ndarray, bits: int, factor: np.ndarray) -> Rounded:
    top = np.float32(2**bits - 1)
    n, count, size = x.shape
    columns = np.ascontiguousarray(x.reshape(n, -1).T)  # [K, N]: a step needs a whole column
    numbers = np.empty(columns.shape, np.uint8)
    scales, zeros = np.empty((n, count, 1), np.float32), np.empty((n, count, 1), np.uint8)
    for block, start in enumerate(range(0, len(columns), size)):
        end = start + size
        own, errors = columns[start:end], np.empty((size, n), np.float32)
        _, scales[:, [block]], zero_points = blocks.search(np.ascontiguousarray(own.T)[:, None], bits)
        assert zero_points is not None
        zeros[:, [block]] = zero_points
        scale, zero, within = scales[:, block, 0], zeros[:, block, 0].astype(np.float32), factor[start:end, start:end]
        for column in range(size):
            number = (np.rint(own[column] / scale) + zero).clip(0, top)
            numbers[start + column] = number
            errors[column] = (own[column] - (number - zero) * scale) / within[column, column]
            own[column + 1 :] -= np.outer(within[column, column + 1 :], errors[column])
        columns[end:] -= factor[start:end, end:].T @ errors
    return numbers.T.reshape(n, count, size), scales, zeros
