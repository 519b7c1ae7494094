"""Requests to a real server, what they must answer, and what the server's process costs."""

import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsss.runtime.serving.local_server import LocalServer

Arrays = dict[str, np.ndarray]
LABEL_OUTPUTS = ("label", "confidence", "scores", "used_classes", "change")
KINDS = {"uint8": "UINT8", "float32": "FP32", "object": "BYTES"}


def client_of(server: LocalServer, protocol: str) -> Any:
    """A client over http or grpc."""
    if protocol == "http":
        import tritonclient.http as httpclient

        return httpclient.InferenceServerClient(server.http)
    import tritonclient.grpc as grpcclient

    return grpcclient.InferenceServerClient(server.grpc)


def given(client: Any, inputs: Arrays) -> list[Any]:
    """Inputs in the form of a client's library."""
    made = []
    for name, values in inputs.items():
        made.append(
            library_of(client).InferInput(name, list(values.shape), KINDS[values.dtype.name])
        )
        made[-1].set_data_from_numpy(values)
    return made


def ask(client: Any, model: str, inputs: Arrays, outputs: Sequence[str], **options: Any) -> Arrays:
    """One request; exactly the outputs that were asked for must come back."""
    asked = [library_of(client).InferRequestedOutput(name) for name in outputs]
    result = client.infer(model, given(client, inputs), outputs=asked, **options)
    response = result.get_response()
    listed = response["outputs"] if isinstance(response, dict) else response.outputs
    names = {each["name"] if isinstance(each, dict) else each.name for each in listed}
    assert names == set(outputs)
    return {name: result.as_numpy(name) for name in outputs}


def library_of(client: Any) -> Any:
    """tritonclient.http or tritonclient.grpc."""
    import tritonclient.grpc as grpcclient
    import tritonclient.http as httpclient

    return httpclient if isinstance(client, httpclient.InferenceServerClient) else grpcclient


def images(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) of smooth colours."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(each, size[::-1]) for each in coarse])


def classes(count: int) -> np.ndarray:
    """Told, told to be absent, and left to the classifier."""
    return np.array([[1, 0, 1], [-1, -1, -1], [0, 1, -1]], np.float32)[:count]


def metric(server: LocalServer, name: str, model: str, **labels: str) -> int:
    """A figure of a model, summed over its versions and whatever else the labels leave open."""
    with urllib.request.urlopen(server.metrics, timeout=5) as answer:
        text = answer.read().decode()
    wanted = {"model": model, **labels}
    total = 0.0
    for found, value in re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.M):
        have = dict(re.findall(r'(\w+)="([^"]*)"', found))
        if wanted.items() <= have.items():
            total += float(value)
    return int(total)


def resident_bytes(server: LocalServer, field: str = "VmRSS") -> int:
    """Of the server and its stubs, which are one process group; `VmHWM` is the greatest so far."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == server.pid:
                status = (folder / "status").read_text()
                total += 1024 * int(re.findall(rf"{field}:\s+(\d+)", status)[0])
        except (OSError, IndexError):  # ended meanwhile
            continue
    return total
