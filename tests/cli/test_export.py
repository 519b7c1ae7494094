"""`wsss export` and what a bundle is good for, through the commands alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Outcome, wsss
from tiny_run import CLASSES, NUM_VAL

from wsss.runtime.io.image_io import read_label_map

pytest.importorskip("onnxscript", reason="needs onnxscript")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

GRAPHS = {"cam", "affinity", "refine", "label", "segmenter"}


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path) for path in sorted(folder.glob("masks/*.png"))}


def test_every_graph_is_measured_before_it_is_told(exported: tuple[Path, Outcome]) -> None:
    out, outcome = exported
    lines = outcome.succeeded().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == GRAPHS
    assert all("float32 against torch: largest error" in line for line in lines[:-1])
    assert lines[-1] == f"bundle: {out}"
    parity = json.loads((out / "bundle.json").read_text())["parity"]
    assert set(parity["graphs"]) == GRAPHS
    assert max(max(graph["max_error"].values()) for graph in parity["graphs"].values()) < 1e-4


def test_a_moved_bundle_that_nobody_may_write_labels_like_its_run(
    exported: tuple[Path, Outcome],
    trained: tuple[Path, Outcome],
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    bundle = shutil.copytree(exported[0], tmp_path / "moved" / "bundle")
    before = {path.name: path.stat().st_mtime_ns for path in (bundle, *bundle.iterdir())}
    for path in bundle.iterdir():
        path.chmod(0o444)
    bundle.chmod(0o555)
    images = tiny_data / "JPEGImages"
    for model, out in ((bundle, "bundle"), (trained[0], "run")):
        found = wsss(
            "label", images, "--model", model, "--out", tmp_path / out, "--mode", "walk", "--no-crf"
        )
        found.succeeded()
    # To root, who may run this, the modes say nothing: hence the times.
    assert before == {path.name: path.stat().st_mtime_ns for path in (bundle, *bundle.iterdir())}
    bundle.chmod(0o755)
    of_bundle, of_run = labels_of(tmp_path / "bundle"), labels_of(tmp_path / "run")
    assert list(of_bundle) == list(of_run) and of_run
    equal = [float((of_bundle[name] == of_run[name]).mean()) for name in of_run]
    assert np.mean(equal) >= 0.999
    assert len(np.unique(np.concatenate([label.ravel() for label in of_run.values()]))) > 1


@pytest.mark.parametrize("file", ["bundle.json", "label.onnx", "affinity.onnx"])
def test_one_flipped_byte_is_refused_by_the_name_of_its_file(
    file: str, exported: tuple[Path, Outcome], tiny_data: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported[0], tmp_path / "bundle")
    content = bytearray((bundle / file).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / file).write_bytes(content)
    images, out = tiny_data / "JPEGImages", tmp_path / "out"
    message = wsss("label", images, "--model", bundle, "--out", out).line()
    assert file in message
    assert not list(out.glob("**/*.png"))


def test_int8_is_calibrated_measured_and_runs(
    trained: tuple[Path, Outcome], tiny_data: Path, tmp_path: Path
) -> None:
    arguments = ("export", trained[0], "--data", tiny_data, "--precision", "int8")
    bundle = tmp_path / "int8"
    # The networks of the tiny run are nearly untrained: their labels change at a breath.
    outcome = wsss(*arguments, "--graphs", "label", "--out", bundle, "--force", "--json")
    agreement = json.loads(outcome.succeeded().out)["agreement"]["label"]
    assert 0.5 < agreement["labels_equal"] <= 1
    assert agreement["bytes"] < agreement["bytes_float32"]
    # One of the two validation images sets the ranges; labels are compared on the other.
    assert agreement["miou"] is not None and agreement["images"] == NUM_VAL - NUM_VAL // 2
    assert "WARNING" not in outcome.err  # the quantiser's own advice
    model = onnx.load(bundle / "label.onnx")
    quantised = {node.op_type for node in model.graph.node if "/network/" in node.name}
    assert {"QuantizeLinear", "DequantizeLinear"} <= quantised
    walk = [node for node in model.graph.node if node.name.startswith("refine/")]
    assert walk and not any("Quantize" in node.op_type for node in walk)
    labelled = wsss(
        "label", tiny_data / "JPEGImages", "--model", bundle, "--out", tmp_path / "out"
    ).succeeded()
    assert labels_of(tmp_path / "out"), labelled.out


def test_trtexec_lines_need_neither_tensorrt_nor_a_gpu(exported: tuple[Path, Outcome]) -> None:
    before = sorted(path.name for path in exported[0].iterdir())
    lines = wsss("export", exported[0], "--dry-run").succeeded().out.splitlines()
    assert len(lines) == len(GRAPHS)
    assert all("trtexec --onnx=" in line and "--saveEngine=" in line for line in lines)
    assert sorted(path.name for path in exported[0].iterdir()) == before


def test_refinement_alone_is_compared_on_what_the_networks_give(
    trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    wsss("export", trained[0], "--out", out, "--graphs", "refine").succeeded()
    assert sorted(path.name for path in out.iterdir()) == ["bundle.json", "refine.onnx"]


def test_an_existing_bundle_is_replaced_where_that_was_asked(
    trained: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    arguments = ("export", trained[0], "--out", out, "--graphs", "segmenter")
    wsss(*arguments).succeeded()
    (out / "thesis.txt").write_text("of somebody")
    assert "holds 'thesis.txt', which is no part" in wsss(*arguments, "--overwrite").line()
    (out / "thesis.txt").unlink()
    wsss(*arguments, "--overwrite").succeeded()
    assert sorted(path.name for path in out.iterdir()) == ["bundle.json", "segmenter.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    assert tuple(json.loads((out / "bundle.json").read_text())["classes"]) == CLASSES
