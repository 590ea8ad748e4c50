"""From PyTorch to ONNX, and the proof that both say the same."""
