"""A local Triton Inference Server: find it, check what it is to serve, start, await and stop it."""
