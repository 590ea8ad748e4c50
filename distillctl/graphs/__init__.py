"""Export models from PyTorch to ONNX, and check that both agree."""
