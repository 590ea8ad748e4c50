"""Whichever of the two kinds of graph a folder holds."""

from __future__ import annotations

from pathlib import Path

from distillctl.runtimes.onnx_decoder import OnnxDecoder
from distillctl.runtimes.onnx_seq2seq import OnnxSeq2Seq

OnnxGenerator = OnnxDecoder | OnnxSeq2Seq
ENCODER_DECODER = "decoder_model_merged.onnx"


def open_generator(folder: Path, threads: int = 1, suffix: str = ".onnx") -> OnnxGenerator:
    """The folder's graph, ready to be asked; suffix: ".ort" for those in ONNX Runtime's own format."""
    return (OnnxSeq2Seq if (folder / ENCODER_DECODER).exists() else OnnxDecoder)(folder, threads, suffix)
