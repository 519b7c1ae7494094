"""Trains a recipe for several seeds and measures every step, by `wsss eval` or `wsss train`.

    python benchmarks/train_seeds.py RECIPE --data DIR --weights FILE --runs DIR --seeds 0 1 2

Writes `benchmarks/results/RECIPE.json` and a table beside it. Finished stages and measured seeds
are kept, so the command can be repeated. Remove RUNS/seedN.json to measure a seed again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from wsss.training.methods import open_method
from wsss.training.recipes import load_recipe

RESULTS = Path(__file__).parent / "results"
# name -> (split, arguments of `wsss eval` behind the run, or what lies in it)
ROWS = {
    "train, CAM": ("train", "cam"),
    "train, CAM + walk": ("train", "labels/scores"),
    "train, labels": ("train", "labels"),
    "val, CAM, labels given": ("val", "--mode cam"),
    "val, CAM + walk, labels given": ("val", "--mode walk"),
    "val, CAM, no labels": ("val", "--mode cam --no-image-labels"),
    "val, segmenter, no labels": ("val", "segmenter/evaluation.json"),
}
# name -> figure of the stage `instances`
INSTANCE_ROWS = {
    "CAM, components": "cam_ap50",
    "+ boundaries": "boundary_ap50",
    "+ displacement": "ap50",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        metavar="ROW",
        default=list(ROWS),
        help=f"what is measured; without a row of the segmenter none is trained: {list(ROWS)}",
    )
    arguments = parser.parse_args()
    results = [measure_seed(arguments, seed) for seed in arguments.seeds]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.recipe}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{arguments.recipe}.md").write_text(table(results))
    print(table(results))


def measure_seed(arguments: argparse.Namespace, seed: int) -> dict:
    run, kept = arguments.runs / f"seed{seed}", arguments.runs / f"seed{seed}.json"
    if kept.is_file():
        known = json.loads(kept.read_text())
        if known["rows"] == arguments.rows:
            return known
    data = arguments.data
    options = ["--data", data, "--weights", arguments.weights, "--out", run]
    options += ["--set", f"seed={seed}"]
    if not any("segmenter" in row for row in arguments.rows):
        stages = [stage.name for stage in open_method(load_recipe(arguments.recipe).method).stages]
        options += ["--stages", ",".join(stage for stage in stages if stage != "segmenter")]
    trained = wsss("train", arguments.recipe, *options)
    records = [json.loads((run / stage / "stage.json").read_text()) for stage in trained["seconds"]]
    figures = {}
    for name in arguments.rows:
        split, what = ROWS[name]
        if not exists(run, what):
            continue
        if what.endswith(".json"):  # measured by `wsss train`, and kept
            report = json.loads((run / what).read_text())["report"]
        else:
            place = [run, *what.split()] if what.startswith("--mode") else [run / what]
            report = wsss("eval", *place, "--data", data, "--split", split)
        figures[name] = {
            "all": report["miou"],
            **{source: values["miou"] for source, values in report["sources"].items()},
            "images": report["images"],
            "background": report["background"],
        }
    stages = {name: round(seconds) for name, seconds in trained["seconds"].items()}
    result = {
        "seed": seed,
        "rows": arguments.rows,
        "stage_seconds": stages,
        "train_peak_gib": round(max(record["memory"]["host_mib"] for record in records) / 1024, 2),
        "figures": figures,
        "instances": trained["figures"].get("instances", {}),
    }
    kept.write_text(json.dumps(result))
    return result


def exists(run: Path, what: str) -> bool:
    """Whether the method of a run has this step; all have CAMs and a segmenter."""
    if what.startswith("--mode"):
        return "walk" not in what or (run / "labels" / "scores").is_dir()
    return (run / what).exists()


def wsss(*arguments: object) -> dict:
    """What a command printed as JSON."""
    command = [sys.executable, "-m", "wsss", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def table(results: list[dict]) -> str:
    groups = [
        key
        for key in next(iter(results[0]["figures"].values()))
        if key not in ("images", "background")
    ]
    seeds = ", ".join(str(result["seed"]) for result in results)
    lines = [
        f"mIoU in per cent: mean over seeds {seeds}, in brackets the lowest and highest.",
        "",
        "| list and step | " + " | ".join(groups) + " |",
        "|---|" + "---|" * len(groups),
    ]
    for name in results[0]["figures"]:
        cells = []
        for group in groups:
            values = [result["figures"][name][group] for result in results]
            low, high = min(values), max(values)
            cells.append(f"{statistics.mean(values):.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if results[0]["instances"]:
        lines += [
            "",
            f"AP50 of instances in per cent on {results[0]['instances']['images']} training images "
            "with instance masks, image-level labels given, likewise.",
            "",
            "| step | AP50 |",
            "|---|---|",
        ]
        for name, key in INSTANCE_ROWS.items():
            values = [result["instances"][key] for result in results]
            mean, low, high = statistics.mean(values), min(values), max(values)
            lines.append(f"| {name} | {mean:.1f} ({low:.1f} to {high:.1f}) |")
    seconds = [sum(result["stage_seconds"].values()) / 60 for result in results]
    memory = max(result["train_peak_gib"] for result in results)
    lines += [
        "",
        f"`wsss train` took {min(seconds):.0f} to {max(seconds):.0f} minutes a seed and up to "
        f"{memory:.1f} GiB.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
