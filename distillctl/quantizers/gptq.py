"""Round a matrix column by column, and let later columns make up for the error of earlier ones (GPTQ).

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1.
What counts is the error of the product W·x on inputs that occur, and not that of the weights: inputs are correlated, so
a column that is not rounded yet can make up for the error of one that is. The columns with the largest inputs come
first, when most others can still make up for them, and each block has the scale and zero point that `blocks.k_quant`
finds for its original weights. (The authors' program calls these options `act-order` and `static-groups`.)

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
_AT_ONCE = 128
"""Number of columns that are rounded before their errors are passed on to all later columns, in one matrix product."""


def gptq(weight: np.ndarray, bits: int, block_size: int, moment: np.ndarray) -> Blocks:
    """Round a matrix [N, K]. moment: mean of x·xᵀ over the inputs x of its product, [K, K]."""
    padded = np.pad(moment.astype(np.float64), (0, -len(moment) % block_size))
    order = np.argsort(-padded.diagonal(), kind="stable")
    factor = _factor(padded[np.ix_(order, order)]).astype(np.float32)
    return blocks.in_parts(functools.partial(_round, order=order, factor=factor), weight, bits, block_size)


def _factor(moment: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with UᵀU = (moment + damping)⁻¹, which says how columns correct each other."""
    diagonal = np.diag_indices(len(moment))
    damped = moment.copy()
    damped[diagonal] += _DAMPING * (moment[diagonal].mean() or 1.0)
    factor: np.ndarray = cholesky(np.linalg.inv(damped))
    return factor


def _round(x: np.ndarray, bits: int, order: np.ndarray, factor: np.ndarray) -> Rounded:
    top = np.float32(2**bits - 1)
    n, count, size = x.shape
    _, scales, zero_points = blocks.search(x, bits)
    assert zero_points is not None
    columns = x.reshape(n, -1).T[order]  # [K, N]: a step needs a whole column
    scale, zero = scales[..., 0].T[order // size], zero_points[..., 0].T[order // size].astype(np.float32)
    numbers = np.empty(columns.shape, np.uint8)
    for start in range(0, len(columns), _AT_ONCE):
        end = start + _AT_ONCE
        own, within = columns[start:end], factor[start:end, start:end]
        errors = np.empty_like(own)
        for column, place in enumerate(order[start:end]):
            at = start + column
            number = (np.rint(own[column] / scale[at]) + zero[at]).clip(0, top)
            numbers[place] = number
            errors[column] = (own[column] - (number - zero[at]) * scale[at]) / within[column, column]
            own[column + 1 :] -= np.outer(within[column, column + 1 :], errors[column])
        columns[end:] -= factor[start:end, end:].T @ errors
    return numbers.T.reshape(n, count, size), scales, zero_points
