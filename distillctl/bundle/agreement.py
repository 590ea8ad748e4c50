"""Compare a bundle's other graphs with the one that quantize measured, on every held-out row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distillctl.errors import GateFailed


def compare(name: str, ids: Sequence[str], onnx: np.ndarray, other: np.ndarray, tie: float) -> dict[str, Any]:
    """Return rows, max_logit_difference and same_label. onnx, other: logits [N, K].

    Raise GateFailed if a row's label differs although the ONNX graph's two highest logits are at least ``tie`` apart.
    """
    differs = onnx.argmax(-1) != other.argmax(-1)
    second, first = np.sort(onnx, axis=-1)[:, -2:].T
    wrong = differs & (first - second >= tie)
    if wrong.any() or not np.isfinite(other).all():
        row = int(np.argmax(wrong | ~np.isfinite(other).all(-1)))
        raise GateFailed(
            f"{name} and model.onnx give different labels (logits {_shown(other[row])} and {_shown(onnx[row])}), so "
            "nothing is committed",
            where=f"row {ids[row]}",
        )
    return {
        "rows": len(ids),
        "max_logit_difference": float(np.abs(onnx - other).max()),
        "same_label": float(1 - differs.mean()),
    }


def _shown(logits: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in logits) + "]"
