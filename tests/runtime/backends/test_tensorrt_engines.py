"""Which engine of a bundle runs on a machine, and what is opened then; no TensorRT is needed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from small_bundles import ENGINE, content, write_bundle, write_manifest

from wsss.errors import ArtifactError
from wsss.runtime.backends import tensorrt_backend
from wsss.runtime.backends.contract import GraphDescription, TensorSpec
from wsss.runtime.bundle import graph_files as tensorrt_engines
from wsss.runtime.bundle.graph_files import fitting_engine
from wsss.runtime.bundle.open import EngineEntry
from wsss.runtime.bundle.predictor import BundlePredictor

HOPPER, AMPERE, TURING = (9, 0), (8, 6), (7, 5)


def engine(
    file: str,
    capability: str,
    version: str = "11.4.0",
    *,
    versions: bool = False,
    gpus: bool = False,
) -> EngineEntry:
    """An engine of the graph `label`; for later TensorRT versions, for all GPUs from Ampere on."""
    return EngineEntry(file, "label", version, capability, "a GPU", versions, gpus)


OWN, GPUS = engine("own", "9.0"), engine("gpus", "8.6", gpus=True)
VERSIONS, OLD = engine("versions", "9.0", "10.13.0", versions=True), engine("old", "9.0", "10.13.0")


@pytest.mark.parametrize(
    ("engines", "capability", "version", "expected"),
    [
        ((GPUS, OWN), HOPPER, "11.4.0", OWN),
        ((VERSIONS, OWN), HOPPER, "11.4.0", OWN),
        ((VERSIONS, OLD), HOPPER, "10.13.0", OLD),
        ((OLD, VERSIONS), HOPPER, "11.4.0", VERSIONS),
        ((OWN, GPUS), (12, 0), "11.4.0", GPUS),
        ((OWN, GPUS), AMPERE, "11.4.0", GPUS),
    ],
)
def test_the_engine_that_fits_best_is_taken(
    engines: tuple[EngineEntry, ...],
    capability: tuple[int, int],
    version: str,
    expected: EngineEntry,
) -> None:
    assert fitting_engine(engines, capability, version) is expected


@pytest.mark.parametrize(
    ("engines", "capability", "version"),
    [
        ((OWN,), AMPERE, "11.4.0"),
        ((OWN,), HOPPER, "11.5.0"),
        ((OWN,), HOPPER, "11.10.0"),
        ((GPUS,), TURING, "11.4.0"),
        ((VERSIONS,), HOPPER, "10.12.0"),  # never backwards
        ((), HOPPER, "11.4.0"),
    ],
)
def test_engines_that_do_not_fit_are_listed(
    engines: tuple[EngineEntry, ...], capability: tuple[int, int], version: str
) -> None:
    with pytest.raises(ArtifactError, match=f"TensorRT {version}; the bundle has") as error:
        fitting_engine(engines, capability, version)
    listed = ", ".join(f"{e.file} ({e.gpu}, TensorRT {e.tensorrt})" for e in engines) or "none"
    assert f"has {listed}: build one here" in str(error.value)


def test_later_versions_are_compared_as_numbers() -> None:
    compatible = engine("old", "9.0", "10.9.0", versions=True)
    assert fitting_engine([compatible], HOPPER, "10.13.0") is compatible


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """Plans that were opened on a pretended H100 with TensorRT 11.4, with or without host code."""
    plans: list[tuple[Path, bool]] = []
    outputs = tuple(
        TensorSpec(name, "float32", ("n",)) for name in ("label", "confidence", "scores")
    )
    described = GraphDescription("tensorrt", "cuda", (), outputs)

    def open_plan(path: Path, *, allow_host_code: bool, **_: object) -> SimpleNamespace:
        plans.append((path, allow_host_code))
        return SimpleNamespace(describe=lambda: described, close=lambda: None)

    torch = SimpleNamespace(cuda=SimpleNamespace(get_device_capability=lambda: HOPPER))
    trt = SimpleNamespace(__version__="11.4.0.106")
    monkeypatch.setattr(tensorrt_engines, "import_cuda_torch", lambda reason: torch)
    monkeypatch.setattr(tensorrt_engines, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_backend, "open_plan", open_plan)
    return plans


@pytest.mark.parametrize("is_compatible", [False, True])
def test_a_bundle_opens_its_engine(
    tmp_path: Path, opened: list[tuple[Path, bool]], is_compatible: bool
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    manifest = content(folder)
    manifest["engines"][0]["version_compatible"] = is_compatible
    write_manifest(folder, manifest)
    predictor = BundlePredictor(folder, backend="tensorrt")
    predictor.graph("label")
    # TensorRT runs the code of version-compatible plans only.
    assert opened == [(folder / ENGINE, is_compatible)]


def test_an_engine_that_is_missing_or_exchanged_is_refused(
    tmp_path: Path, opened: list[tuple[Path, bool]]
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    predictor = BundlePredictor(folder, backend="tensorrt")
    with pytest.raises(ArtifactError, match=r"no TensorRT engine of graph 'cam': build it on"):
        predictor.graph("cam")
    (folder / ENGINE).write_bytes(b"another plan")
    with pytest.raises(ArtifactError, match=ENGINE):
        predictor.graph("label")
    assert not opened
