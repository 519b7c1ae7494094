"""What computes a bundle's graphs: torch, onnxruntime, TensorRT, behind one contract."""
