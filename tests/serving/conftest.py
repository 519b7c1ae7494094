"""A bundle to serve, its repository, and a server that runs it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from triton_server import find_server, triton_server

from wsss.errors import MissingDependencyError
from wsss.export.triton import RepositoryOptions, write_repository
from wsss.runtime.bundle.open import MANIFEST, file_entry, seal
from wsss.runtime.serving.installation import Installation
from wsss.runtime.serving.local_server import LocalServer


@pytest.fixture(scope="session")
def triton_environment() -> Installation:
    """The installed server; skips where there is none."""
    try:
        return find_server()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bundle(untrained_bundle: Path) -> Path:
    """A bundle of networks with random weights, three classes; not to be changed."""
    return untrained_bundle


@pytest.fixture(scope="session")
def other_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graphs with other weights, which label otherwise; not to be changed."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("other") / "bundle")
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    generator = np.random.default_rng(1)
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
                weights = onnx.numpy_helper.to_array(tensor)
                noise = generator.normal(0, weights.std(), weights.shape).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights + noise, tensor.name))
        path.write_bytes(model.SerializeToString(deterministic=True))
        content["files"][path.name] = file_entry(path)
    (folder / MANIFEST).write_bytes(seal(content))
    return folder


@pytest.fixture(scope="session")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model repository with everything in it; not to be changed."""
    folder = tmp_path_factory.mktemp("repositories") / "models"
    options = RepositoryOptions(decode=True, intra_op_threads=1, warmup=((48, 64),))
    return write_repository(bundle, folder, options).folder


@pytest.fixture(scope="session")
def server(triton_environment: Installation, repository: Path) -> Iterator[LocalServer]:
    """A server that is ready; a test that stops it starts one of its own."""
    with triton_server(repository) as running:
        yield running
