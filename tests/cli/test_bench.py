"""`wsss bench` on cases small enough for a test; what it prints and that it checks its forms."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from command_line import Outcome, wsss
from pytest import MonkeyPatch, approx, fixture, importorskip, mark
from torch import Tensor
from typer.testing import CliRunner

from wsss.bench import cam as cam_bench
from wsss.bench import cases as bench_cases
from wsss.bench import label_torch as label_forms
from wsss.bench import walk as walk_bench
from wsss.bench.cases import drawn_crf_case, drawn_walk_case
from wsss.cli.main import app

WALK_KEYS = {
    "stride",
    "batch",
    "device",
    "form",
    "seconds_per_image",
    "speedup",
    "memory_ratio",
    "max_error",
    "argmax_agreement",
}


draw_walk_case, draw_crf_case = cache(drawn_walk_case), cache(drawn_crf_case)


@fixture
def small_cases(monkeypatch: MonkeyPatch) -> None:
    def walks(model: None, data: None, *, strides: tuple[int, ...], count: int) -> list[object]:
        return [draw_walk_case(stride * 4, 2) for stride in strides]

    monkeypatch.setattr(bench_cases, "walk_cases", walks)
    small = draw_crf_case(0, 2)
    cropped = type(small)(small.name, small.image[:40, :52].copy(), small.scores[:, :40, :52])
    monkeypatch.setattr(bench_cases, "crf_cases", lambda *_, **__: [cropped])
    monkeypatch.setattr(walk_bench, "DENSE_CELLS", 200)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@mark.usefixtures("small_cases")
def test_walk_rows_name_everything_a_ratio_depends_on() -> None:
    found = json.loads(run("walk", "--affinity", "photo", "--rounds", "1", "--json"))
    assert {"gflops", "gigabytes_per_second", "threads", "processor"} <= set(found["machine"])
    assert found["source"] == "drawn photographs"
    assert {(row["stride"], row["batch"]) for row in found["rows"]} == {
        (stride, batch) for stride in (32, 16) for batch in (1, 8, 32)
    }
    for row in found["rows"]:
        assert set(row) >= WALK_KEYS
        assert row["max_error"] < 1e-4 and row["argmax_agreement"] > 0.999
        assert row["is_extrapolated"] == (row["stride"] == 16)
    assert {row["source"] for row in found["affinity"]} == {"features", "boundaries"}


@mark.usefixtures("small_cases")
def test_crf_rows_hold_the_agreement_with_the_package() -> None:
    rows = json.loads(run("crf", "--rounds", "1", "--json"))["rows"]
    assert len({row["settings"] for row in rows}) == 5
    for row in rows:
        assert row["labels"] == 3 and row["seconds"] > 0
        if row["time_ratio"] is not None:
            assert row["time_ratio"] == approx(row["seconds"] / row["package_seconds"])
            assert row["argmax_agreement"] >= 0.9995


@mark.usefixtures("small_cases")
def test_tables_are_not_cut_in_a_narrow_window(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = run("walk", "--rounds", "1", "--quick").splitlines()
    header = next(line for line in lines if line.startswith("stride"))
    assert "argmax_agreement" in header and "…" not in "".join(lines)


@mark.usefixtures("small_cases")
def test_no_speed_of_a_wrong_result(monkeypatch: MonkeyPatch) -> None:
    def wrong(scores: Tensor, *_: object) -> dict[str, object]:
        return {"zeros": lambda: scores * 0}

    monkeypatch.setattr(walk_bench, "walk_forms", wrong)
    result = CliRunner().invoke(app, ["bench", "walk", "--rounds", "1"])
    assert result.exit_code == 1 and "form 'zeros' is wrong here" in result.stderr
    assert not result.stdout


@fixture
def exporter() -> None:
    """Skips a test where torch cannot export, or nothing runs the graphs."""
    importorskip("onnxscript", reason="needs onnxscript")
    importorskip("onnxruntime", reason="needs onnxruntime")


FORMS = {"published", "torch", "torch batched", "onnxruntime", "onnxruntime fp16"}


def without_bfloat16(rows: list[dict[str, object]]) -> set[object]:
    """Names of the forms; bfloat16 is there where the processor has it."""
    return {row["form"] for row in rows} - {"torch bfloat16"}


def stage_sums(stages: list[dict[str, object]]) -> dict[tuple[object, object], float]:
    sums: dict[tuple[object, object], float] = {}
    for row in stages:
        key = (row["part"], row["form"])
        sums[key] = sums.get(key, 0.0) + float(str(row["share"]))
    return sums


@mark.usefixtures("exporter")
def test_cam_rows_are_checked_against_torch(trained: tuple[Path, Outcome], tiny_data: Path) -> None:
    outcome = wsss(
        *("bench", "cam", "--model", trained[0], "--data", tiny_data, "--json"),
        *("--rounds", "1", "--precision", "fp32,fp16"),
    )
    found = json.loads(outcome.succeeded().out)
    rows = {row["form"]: row for row in found["rows"]}
    assert without_bfloat16(found["rows"]) == FORMS
    for row in rows.values():
        assert row["speedup"] == approx(
            rows["published"]["seconds_per_image"] / row["seconds_per_image"]
        )
        assert row["peak_share"] == approx(row["gflops"] / found["machine"]["gflops"])
        assert row["gflops"] == approx(row["gflop"] / row["seconds_per_image"])
    assert rows["torch"]["max_error"] == 0 and rows["torch"]["labels_equal"] == 1
    assert 0 < rows["onnxruntime"]["max_error"] < 1e-4
    assert rows["onnxruntime fp16"]["max_error"] > rows["onnxruntime"]["max_error"]
    assert all(share == approx(1) for share in stage_sums(found["stages"]).values())


@mark.usefixtures("exporter")
def test_label_rows_go_from_disk_to_disk(trained: tuple[Path, Outcome], tiny_data: Path) -> None:
    outcome = wsss(
        "bench", "label", "--model", trained[0], "--data", tiny_data, "--quick", "--json"
    )
    found = json.loads(outcome.succeeded().out)
    walks = {row["form"]: row for row in found["rows"] if row["by"] == "walk"}
    assert without_bfloat16(list(walks.values())) == {"published", "torch", "onnxruntime"}
    assert without_bfloat16([row for row in found["rows"] if row["by"] == "segmenter"]) == {
        "torch",
        "onnxruntime",
    }
    assert walks["torch"]["labels_equal"] == 1 and walks["onnxruntime"]["labels_equal"] >= 0.999
    # The baseline resizes by another library, and is right but for that.
    assert walks["published"]["labels_equal"] > 0.7
    for row in found["rows"]:
        assert 0 < row["seconds_in_memory"] < row["seconds_per_image"]
        assert 0 <= row["outside_in_memory"] <= row["outside_on_disk"] <= 1
        assert row["peak_share"] > 0
        assert row["hours_per_100k"] == approx(row["seconds_per_image"] * 1e5 / 3600)
    stages = {(row["part"], row["form"], row["stage"]) for row in found["stages"]}
    for stage in ("read", "CAM network", "affinity network", "affinity", "walk", "encode, write"):
        assert ("walk", "onnxruntime", stage) in stages
    assert all(share == approx(1) for share in stage_sums(found["stages"]).values())


@mark.usefixtures("exporter")
def test_no_speed_of_wrong_labels(
    trained: tuple[Path, Outcome], tiny_data: Path, monkeypatch: MonkeyPatch
) -> None:
    def wrong(*_: object) -> object:
        return lambda image, classes, clock: np.full(image.shape[:2], 2, np.uint8)

    monkeypatch.setattr(label_forms, "_predicting", lambda *_, **__: wrong())
    arguments = ("bench", "label", "--model", trained[0], "--data", tiny_data, "--quick")
    assert "form 'torch' of walk is wrong here" in wsss(*arguments).line()


@mark.usefixtures("exporter")
def test_no_speed_of_wrong_maps(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(cam_bench, "published_network_error", lambda *_: 0.5)
    arguments = ("bench", "cam", "--backbone", "small", "--size", "32", "32", "--count", "1")
    assert "form 'published: network' is wrong here" in wsss(*arguments).line()
