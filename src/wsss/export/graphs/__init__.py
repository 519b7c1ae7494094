"""ONNX graphs of a bundle, box by box."""
