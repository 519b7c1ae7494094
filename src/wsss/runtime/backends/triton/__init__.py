"""Graphs that a Triton Inference Server runs."""
