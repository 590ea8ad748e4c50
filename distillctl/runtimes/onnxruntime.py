"""Run an exported classifier as an app would: tokenizers and ONNX Runtime, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native
from tokenizers import Tokenizer

from distillctl.untrusted import limits

ERRORS = tuple(
    getattr(native, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
                 "RuntimeException")
)  # fmt: skip
"""Exceptions of ONNX Runtime for a graph that does not open or run; their only common type is Exception."""


def session(graph: Path | bytes, threads: int, operators: str | None = None) -> ort.InferenceSession:
    """Return a CPU session with exactly ``threads`` threads (ONNX Runtime's default depends on the machine).

    operators: path of a library of custom operators.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if operators is not None:
        options.log_severity_level = 4  # the exception says why a graph does not load
        options.register_custom_ops_library(operators)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def graph_bytes(folder: Path) -> int:
    """Return the size of a folder's graphs with their external weights."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx*"))


class OnnxClassifier:
    """Classify texts with a folder's graph, `config.json` and `tokenizer.json`.

    max_length: number of tokens at which texts are cut, or None.
    """

    def __init__(self, folder: Path, threads: int = 1, file: str = "model.onnx", max_length: int | None = None) -> None:
        config = limits.read_json(folder / "config.json")
        self.labels = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        if max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        self._session = session(folder / file, threads)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def feed(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the graph's inputs for some texts, int64 [B, T], right-padded."""
        encodings = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [e.ids for e in encodings],
            "attention_mask": [e.attention_mask for e in encodings],
            "token_type_ids": [e.type_ids for e in encodings],
        }
        return {name: np.asarray(columns[name], dtype=np.int64) for name in self._inputs}

    def logits(self, texts: Sequence[str], batch_size: int = 1) -> np.ndarray:
        """Return label logits, float32 [N, K]. Dynamic quantization depends on the batch, hence batch_size 1."""
        starts = range(0, len(texts), batch_size)
        return np.concatenate([self.run(self.feed(texts[start : start + batch_size])) for start in starts])

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Return label logits, float32 [B, K], of the graph's inputs."""
        logits: np.ndarray = self._session.run(["logits"], feed)[0]
        return logits
