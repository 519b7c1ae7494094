"""What the training of every network has in common: start it, fit it, keep its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ...engine.loop import Objective, finish, train
from ...engine.networks import (
    AnyNetwork,
    NetworkSpec,
    open_network,
    save_network,
    start_network,
)
from ...engine.run import Run
from ...recipe.sections import TrainSettings


def trained_network(
    kind: type[AnyNetwork],
    run: Run,
    folder: Path,
    spec: NetworkSpec,
    settings: TrainSettings,
    fit: Callable[[AnyNetwork], None],
    start: Literal["weights", "classifier"] | Path = "weights",
) -> AnyNetwork:
    """The network of a stage, trained and written unless its `weights.safetensors` is there.

    Args:
        kind: class that the spec builds.
        fit: trains the network in place.
        start: backbone from the run's foreign weights, or from its trained classifier; or all of it
            from a checkpoint of such a network.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        network = start_network(
            spec,
            seed=run.recipe.seed,
            weights_path=run.weights_path,
            classifier_path=run.weights("cam") if start == "classifier" else None,
            network_path=start if isinstance(start, Path) else None,
        )
        if not isinstance(network, kind):
            raise TypeError(f"a {type(network).__name__} is no {kind.__name__}")
        network.backbone.freeze(settings.frozen)
        fit(network)
        save_network(path, network, spec, run.train_set.classes, run.recipe.method)
    finish(folder)
    return open_network(kind, path, run.device)[0]


def fit_objective(
    run: Run,
    folder: Path,
    digest: str,
    objective: Objective,
    settings: TrainSettings,
    validate: Callable[[], dict[str, float]] | None = None,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """`loop.train` as a stage calls it."""
    train(
        objective,
        settings,
        folder,
        seed=run.recipe.seed,
        identity=digest,
        device=run.device,
        progress=run.progress,
        name=folder.name,
        validate=validate,
        prepare=prepare,
    )
