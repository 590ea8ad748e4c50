"""Quantize ONNX graphs, and choose one."""
