"""`wsss bench` on cases small enough for a test; what it prints and that it checks its forms."""

import json

from pytest import MonkeyPatch, approx, fixture, mark
from torch import Tensor
from typer.testing import CliRunner

from wsss.cli.main import app
from wsss.runtime.bench import walk as walk_bench
from wsss.runtime.bench.photo import drawn_crf_case, drawn_walk_case
from wsss.training.bench import cases as bench_cases

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


@fixture
def small_cases(monkeypatch: MonkeyPatch) -> None:
    def walks(model: None, data: None, *, strides: tuple[int, ...], count: int) -> list[object]:
        return [drawn_walk_case(stride * 4, 2) for stride in strides]

    monkeypatch.setattr(bench_cases, "walk_cases", walks)
    small = drawn_crf_case(0, 2)
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


def test_half_of_a_model_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "walk", "--model", "run"])
    assert result.exit_code == 1 and "--model and --data belong together" in result.stderr
    result = CliRunner().invoke(app, ["bench", "walk", "--affinity", "model"])
    assert result.exit_code == 1 and "--affinity model goes with --model" in result.stderr


@mark.usefixtures("small_cases")
def test_no_speed_of_a_wrong_result(monkeypatch: MonkeyPatch) -> None:
    def wrong(scores: Tensor, *_: object) -> dict[str, object]:
        return {"zeros": lambda: scores * 0}

    monkeypatch.setattr(walk_bench, "walk_forms", wrong)
    result = CliRunner().invoke(app, ["bench", "walk", "--rounds", "1"])
    assert result.exit_code == 1 and "form 'zeros' is wrong here" in result.stderr
    assert not result.stdout
