"""Compare a bundle's other graphs with the one that quantize measured, on every held-out row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distillctl.errors import GateFailed


def of_labels(name: str, ids: Sequence[str], onnx: np.ndarray, other: np.ndarray, tie: float) -> dict[str, Any]:
    """rows, max_logit_difference, same_label. onnx, other: logits [N, K].

    GateFailed names a row whose label differs though the ONNX graph's two highest logits are further apart than
    ``tie``.
    """
    differs = onnx.argmax(-1) != other.argmax(-1)
    second, first = np.sort(onnx, axis=-1)[:, -2:].T
    wrong = differs & (first - second >= tie)
    if wrong.any() or not np.isfinite(other).all():
        row = int(np.argmax(wrong | ~np.isfinite(other).all(-1)))
        raise GateFailed(
            f"{name} and model.onnx give other labels: logits {_shown(other[row])} and {_shown(onnx[row])}; nothing is "
            "committed",
            where=f"row {ids[row]}",
        )
    return {
        "rows": len(ids),
        "max_logit_difference": float(np.abs(onnx - other).max()),
        "same_label": float(1 - differs.mean()),
    }


def _shown(logits: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in logits) + "]"
