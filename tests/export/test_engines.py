"""Engines in a bundle: what is asked of TensorRT, and what the manifest says afterwards.

`build_engine` is replaced: what it does has tests of its own, and needs TensorRT.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_bundles import ENGINE, write_bundle

from wsss.errors import ConfigError
from wsss.export import engines
from wsss.export.engines import add_engines
from wsss.export.tensorrt import EngineInfo, EngineSettings, ShapeRange
from wsss.runtime.bundle.open import EngineEntry, open_bundle
from wsss.runtime.io.progress import Progress

Built = list[tuple[str, Mapping[str, ShapeRange], EngineSettings]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """Graphs, profiles and settings that an engine was built of, on a pretended H100."""
    calls: Built = []

    def build(
        graph: Path,
        out: Path,
        *,
        profile: Mapping[str, ShapeRange],
        settings: EngineSettings,
        progress: Progress,
    ) -> EngineInfo:
        calls.append((graph.stem, profile, settings))
        target = "ampere_plus" if settings.hardware_compatible else "sm90"
        path = out / f"{graph.stem}.{target}.trt11.4.0.plan"
        path.write_bytes(f"engine {len(calls)}".encode())
        return EngineInfo(path, path.stat().st_size, target, "11.4.0", 1.0)

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100")
    return calls


def test_a_built_engine_is_entered_beside_the_others(tmp_path: Path, built: Built) -> None:
    folder = write_bundle(tmp_path / "bundle")
    before = open_bundle(folder)
    settings = EngineSettings(hardware_compatible=True)
    file = "label.ampere_plus.trt11.4.0.plan"
    assert add_engines(folder, settings, ("label",)) == [file]
    after = open_bundle(folder)  # checks every size and digest
    entry = EngineEntry(file, "label", "11.4.0", "9.0", "NVIDIA H100", False, True)
    assert after.engines == (*before.engines, entry)
    assert after.graphs == before.graphs and after.digest != before.digest
    ((name, profile, asked),) = built
    assert (name, asked) == ("label", settings)
    assert profile == {"image": ((1, 16, 16, 3), (1, 512, 512, 3), (8, 1024, 1024, 3))}


def test_an_engine_of_the_same_name_is_replaced(tmp_path: Path, built: Built) -> None:
    folder = write_bundle(tmp_path / "bundle")
    for _ in range(2):
        assert add_engines(folder, EngineSettings(), ("label",)) == [ENGINE]
    assert [entry.file for entry in open_bundle(folder).engines] == [ENGINE]
    assert (folder / ENGINE).read_bytes() == b"engine 2"
    assert sorted(json.loads((folder / "bundle.json").read_text())["files"]) == [
        "cam.onnx",
        "label.onnx",
        ENGINE,
    ]


def test_a_graph_that_the_bundle_has_not_got_is_named(tmp_path: Path, built: Built) -> None:
    folder = write_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="has no graph 'segmenter': choose of cam, label"):
        add_engines(folder, EngineSettings(), ("label", "segmenter"))
    assert not built
