"""Smaller ONNX graphs."""
