"""Which tests a run leaves out, how it says so, and runs and bundles that all processes share.

Nothing here imports torch before a fixture is used.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from made_once import made_once

if TYPE_CHECKING:
    from command_line import Outcome

    from wsss.training.data.image_set import ImageSet

TARGETS = {"default": "make test", "slow": "make test-slow", "triton": "make test-triton"}
"""How the kinds of tests are run."""

settings.register_profile("few", max_examples=20, deadline=None)
settings.register_profile("many", max_examples=300, deadline=None)  # `make test-slow`
settings.load_profile("few")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftOut(config), "left out")


class LeftOut:
    """Count the tests that `-m` excludes, here or in the workers, and say at the end how many."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.start = perf_counter()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            marked = (kind for kind in ("triton", "slow") if item.get_closest_marker(kind))
            self.counts[next(marked, "default")] += 1

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["left_out"] = dict(self.counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Each worker of pytest-xdist has collected, and left out, the same tests."""
        self.counts = Counter(getattr(node, "workeroutput", {}).get("left_out", self.counts))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        minutes, seconds = divmod(round(perf_counter() - self.start), 60)
        left_out = [f"{self.counts[kind]} {kind} ({TARGETS[kind]})" for kind in sorted(self.counts)]
        text = ", ".join(left_out) or "nothing"
        terminalreporter.write_line(f"took {minutes} min {seconds} s; left out: {text}")


# Made once for all processes of a test run, and not to be changed.


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny image set."""
    from tiny_run import write_images

    folder = made_once(tmp_path_factory, "tiny", lambda place: write_images(place / "data"))
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_images(tiny_data: Path) -> "ImageSet":
    from wsss.training.data.readers import read_image_set

    return read_image_set(tiny_data)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe as a user would write it."""
    from tiny_run import tiny_recipe

    from wsss.training.recipe.recipe import dump_recipe

    def make(place: Path) -> None:
        (place / "tiny.toml").write_text(dump_recipe(tiny_recipe()))

    return made_once(tmp_path_factory, "recipe", make) / "tiny.toml"


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, recipe_file: Path
) -> "tuple[Path, Outcome]":
    """Folder of a run with all stages, and what `wsss train --json` said."""
    from command_line import Outcome, wsss

    def make(place: Path) -> None:
        arguments = ("--data", tiny_data, "--out", place / "run", "--json")
        outcome = wsss("train", recipe_file, *arguments).succeeded()
        (place / "outcome.json").write_text(json.dumps(outcome))

    folder = made_once(tmp_path_factory, "trained", make)
    return folder / "run", Outcome(*json.loads((folder / "outcome.json").read_text()))


@pytest.fixture(scope="session")
def finished_run(trained: "tuple[Path, Outcome]") -> Path:
    """Folder of a run with all stages."""
    return trained[0]


@pytest.fixture(scope="session")
def finished_run_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """Gives the folder of a run of a method with all stages."""

    def finished(method: str) -> Path:
        import torch
        from tiny_run import tiny_recipe

        from wsss.training.pipeline import train

        if method == "affinitynet":
            return Path(request.getfixturevalue("finished_run"))
        images = request.getfixturevalue("tiny_images")
        recipe = tiny_recipe(method=method)

        def make(place: Path) -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as processes that are killed
            train(recipe, images, place / "run", device="cpu")
            torch.set_num_threads(threads)

        return made_once(tmp_path_factory, f"trained_{method}", make) / "run"

    return finished


@pytest.fixture(scope="session")
def finished_irnet_run(finished_run_of: Callable[[str], Path]) -> Path:
    return finished_run_of("irnet")


@pytest.fixture(scope="session")
def finished_sec_run(finished_run_of: Callable[[str], Path]) -> Path:
    return finished_run_of("sec")


@pytest.fixture(scope="session")
def finished_self_guided_run(finished_run_of: Callable[[str], Path]) -> Path:
    return finished_run_of("selfguided")


@pytest.fixture(scope="session")
def finished_cian_run(finished_run_of: Callable[[str], Path]) -> Path:
    return finished_run_of("cian")


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of traced networks, which tests fill."""
    return made_once(tmp_path_factory, "traces", lambda place: None)


@pytest.fixture(scope="session")
def networks_traced_once(traces: Path) -> Iterator[None]:
    """Until the end, no network is traced twice, whatever process exports it."""
    from traced_once import traced_once

    with traced_once(traces):
        yield


@pytest.fixture(scope="session")
def untrained_bundle(tmp_path_factory: pytest.TempPathFactory, networks_traced_once: None) -> Path:
    """A bundle of AffinityNet with random weights, three classes; its run is beside it as `run`."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    from untrained_run import untrained_recipe, write_untrained_run

    from wsss.export.bundle import ExportSettings, export_run

    def make(place: Path) -> None:
        run = write_untrained_run(place / "run", untrained_recipe())
        export_run(run, place / "bundle", ExportSettings())

    return made_once(tmp_path_factory, "untrained", make) / "bundle"
