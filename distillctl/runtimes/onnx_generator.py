"""Open a folder's generating graph, a decoder or an encoder–decoder."""

from __future__ import annotations

from pathlib import Path

from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.runtimes.onnx_seq2seq import OnnxSeq2Seq

OnnxGenerator = OnnxDecoder | OnnxSeq2Seq
ENCODER_DECODER = "decoder_model_merged.onnx"


def open_generator(folder: Path, threads: int = 1, suffix: str = ".onnx") -> OnnxGenerator:
    """Load the folder's graph. suffix: ".ort" for graphs in ONNX Runtime's own format."""
    return (OnnxSeq2Seq if (folder / ENCODER_DECODER).exists() else OnnxDecoder)(folder, threads, suffix)
