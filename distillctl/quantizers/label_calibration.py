"""The calibration of a graph that scores labels: train rows through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from distillctl.quantizers.sensitivity import Calibration
from distillctl.runtimes.onnxruntime import OnnxClassifier


class LabelCalibration(Calibration):
    """The calibration on the simplified views of train rows."""

    def __init__(self, source: Path, texts: Sequence[str]) -> None:
        super().__init__(source)
        self.texts = texts

    def log_probs(self, folder: Path) -> np.ndarray:
        """Return the graph's log-probabilities of the labels, [N, K]."""
        return np.asarray(log_softmax(OnnxClassifier(folder).logits(self.texts), axis=-1))

    def feeds(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        """Yield the inputs of the exported graph, one row at a time."""
        graph = OnnxClassifier(self.source)
        return (graph.feed([text]) for text in self.texts)
