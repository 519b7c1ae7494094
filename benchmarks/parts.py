"""Trains a recipe with its parts on and off for several seeds: what each part is good for.

    python benchmarks/parts.py cian_mobilenetv2 --data DIR --weights FILE --runs DIR --seeds 0 1 2

Writes `benchmarks/results/RECIPE_parts.json` and a table beside it. Finished stages are kept, so
the command can be repeated; those that a part does not touch are taken over (`--reuse`).
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Variant:
    """A recipe with some parts switched.

    Attributes:
        name: of the rows.
        settings: for `--set`.
        figures: name of the row behind `name` -> "STAGE.FIGURE" of the run.
        stages: for `--stages`; "" for all.
    """

    name: str
    settings: tuple[str, ...]
    figures: dict[str, str]
    stages: str = ""


def first_round(name: str, *settings: str) -> Variant:
    return Variant(name, settings, {"": "cian.miou"}, "cam,seeds,cian")


def without(name: str, *settings: str) -> Variant:
    """A self-guided network, measured on the validation list alone: labels take minutes."""
    return Variant(name, settings, {", val": "segmenter.miou"}, "cam,segmenter")


WHOLE = {
    ", val": "segmenter.miou",
    ", train, maps of step 1": "labels.step1_miou",
    ", train, maps of step 2": "labels.step2_miou",
    ", train, labels, by step 3": "labels.miou",
}
ALONE = ("cian.cross_affinity=false", "cian.completion=0")
VARIANTS = {
    "cian_mobilenetv2": (
        first_round("plain segmenter on the seeds", "cian.self_affinity=false", *ALONE),
        first_round("+ self affinity", *ALONE),
        first_round("+ cross affinity", "cian.completion=0"),
        Variant("+ completion", (), {"": "cian.miou", " + retraining": "segmenter.miou"}),
    ),
    "selfguided_mobilenetv2": (
        Variant("whole", (), WHOLE),
        without("labels made once", "selfguided.alternate=false"),
        without("labels without step 2, affinity", "selfguided.affinity=false"),
        without("labels without step 3, guided filter", "selfguided.guided=false"),
        without("without the loss of the maps", "selfguided.affinity_weight=0"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", choices=VARIANTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--reuse", type=Path, help="folder of runs seedN that have the first stages"
    )
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="for all variants")
    arguments = parser.parse_args()
    results = [measure_seed(arguments, seed) for seed in arguments.seeds]
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"{arguments.recipe}_parts.json"
    place.write_text(
        json.dumps({"settings": arguments.settings, "seeds": results}, indent=1) + "\n"
    )
    text = table(results, arguments.settings)
    place.with_suffix(".md").write_text(text)
    print(text)


def measure_seed(arguments: argparse.Namespace, seed: int) -> dict:
    figures = {}
    done = [arguments.reuse / f"seed{seed}"] if arguments.reuse else []
    for number, variant in enumerate(VARIANTS[arguments.recipe]):
        run = arguments.runs / f"seed{seed}" / str(number)
        options = ["--data", arguments.data, "--weights", arguments.weights, "--out", run]
        for setting in (f"seed={seed}", *arguments.settings, *variant.settings):
            options += ["--set", setting]
        for other in done:
            options += ["--reuse", other]
        if variant.stages:
            options += ["--stages", variant.stages]
        command = [sys.executable, "-m", "wsss", "train", arguments.recipe, *options, "--json"]
        finished = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
        trained = json.loads(finished.stdout)
        for what, place in variant.figures.items():
            stage, figure = place.split(".")
            figures[variant.name + what] = trained["figures"][stage][figure]
        done.append(run)
    return {"seed": seed, "figures": figures}


def table(results: list[dict], settings: list[str]) -> str:
    seeds = ", ".join(str(result["seed"]) for result in results)
    changed = f" Changed in all: `--set {' --set '.join(settings)}`." if settings else ""
    lines = [
        f"mIoU in per cent: mean over seeds {seeds}, in brackets those of each.{changed}",
        "",
        "| parts | mIoU |",
        "|---|---|",
    ]
    for name in results[0]["figures"]:
        values = [result["figures"][name] for result in results]
        each = ", ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {statistics.mean(values):.1f} ({each}) |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
