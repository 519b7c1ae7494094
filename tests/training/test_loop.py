"""The training loop: schedule, parameter groups, batches, faults, and resumption."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_run import NETWORKS, tiny_recipe
from torch import Tensor, nn

from wsss.errors import ConfigError, DataError
from wsss.runtime.io.progress import SILENT
from wsss.training.backbones.build import build_backbone
from wsss.training.backbones.layers import BatchKeyedDropout2d
from wsss.training.backbones.parameters import mark_new
from wsss.training.data.image_set import ImageSet
from wsss.training.engine import loop
from wsss.training.engine.loop import Batch, Objective, build_optimizer, train
from wsss.training.engine.metrics import read_metrics
from wsss.training.methods.affinitynet.network import AffinityNet
from wsss.training.methods.shared.classifier import CamClassifier
from wsss.training.methods.shared.segmenter_network import Segmenter
from wsss.training.pipeline import train as train_method
from wsss.training.recipe.sections import TrainSettings

NUM_SAMPLES, BATCH, EPOCHS = 10, 4, 3
STEPS = 6
CPU = torch.device("cpu")


class Stop(Exception):
    """Takes the place of a kill."""


class Toy(nn.Module):
    """A pretrained and a new layer, each with a bias, and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.old = nn.Conv2d(1, 6, 1)
        self.dropout = BatchKeyedDropout2d(0.5)
        self.new = nn.Conv2d(6, 1, 1)
        mark_new(self.new)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.new(self.dropout(self.old(x)))
        return y


class Recorder:
    """An objective whose batches are written down; it can stop or spoil a step."""

    def __init__(self, stop_at: int | None = None, spoil_at: int | None = None) -> None:
        self.network = Toy()
        self.stop_at, self.spoil_at = stop_at, spoil_at
        self.batches: list[tuple[list[int], list[float]]] = []
        self.autocast: list[bool] = []

    def objective(self, num_samples: int = NUM_SAMPLES) -> Objective:
        return Objective(self.network, num_samples, self.sample, self.terms, _mean, ("square",))

    def sample(self, index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        return {"index": np.int64(index)[None], "draw": generator.random((1, 1, 1), np.float32)}

    def terms(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if len(self.batches) == self.stop_at:
            raise Stop
        self.batches.append((batch["index"].flatten().tolist(), batch["draw"].flatten().tolist()))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        target = batch["index"].float().view(-1, 1, 1, 1)
        total = (model(batch["draw"]) - target).square().sum()
        if len(self.batches) == self.spoil_at:
            total = total / 0
        return total[None], torch.tensor([float(len(target))])


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    return (sums / counts).sum()


def _settings(**changes: object) -> TrainSettings:
    values = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01} | changes
    return TrainSettings.model_validate(values)


def _train(
    recorder: Recorder, folder: Path, *, seed: int = 5, identity: str = "a", **changes: object
) -> None:
    train(
        recorder.objective(),
        _settings(**changes),
        folder,
        seed=seed,
        identity=identity,
        device=CPU,
        progress=SILENT,
        name="toy",
    )


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MAX_SAVE_SHARE", float("inf"))


@pytest.mark.parametrize("stage", NETWORKS)
def test_rates_of_a_real_training_follow_the_polynomial(finished_run: Path, stage: str) -> None:
    rows = read_metrics(finished_run / stage / "metrics.jsonl")
    base = getattr(tiny_recipe(), stage).train.learning_rate
    # Ten images make two whole batches of four; two epochs.
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 0.5), (2, 1), (3, 1.5), (4, 2)]
    for row, left in zip(rows, (4 / 4, 3 / 4, 2 / 4, 1 / 4), strict=True):
        assert row["learning_rate"] == pytest.approx(base * left**0.9, rel=1e-12)
        assert np.isfinite(row["loss"])


def test_every_group_follows_the_schedule_at_its_own_multiple(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []
    original = build_optimizer

    def spy(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
        optimizer = original(network, settings)
        optimizer.register_step_pre_hook(
            lambda chosen, *_: rates.append([group["lr"] for group in chosen.param_groups])
        )
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", spy)
    _train(Recorder(), tmp_path, new_layer_factor=7, poly_power=2)
    assert len(rates) == STEPS
    for step, row in enumerate(rates):
        factor = (1 - step / STEPS) ** 2
        expected = [0.01 * factor * multiple for multiple in (1, 2, 7, 14)]
        assert row == pytest.approx(expected, rel=1e-12)


def _networks() -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Networks, and how the names of their new parameters begin."""
    yield CamClassifier(build_backbone("small", 8), 2), ("classifier",)
    yield AffinityNet(build_backbone("small", 8)), ("heads", "mix")
    yield Segmenter(build_backbone("small", 8), 2), ("head",)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_four_groups_cover_each_parameter_once(optimizer: str) -> None:
    settings = _settings(
        optimizer=optimizer, learning_rate=0.5, weight_decay=0.25, new_layer_factor=3
    )
    for network, new in _networks():
        network.backbone.mark_pretrained()
        network.backbone.freeze(("stem",))
        found = {
            id(parameter): (group["lr"], group["weight_decay"])
            for group in build_optimizer(network, settings).param_groups
            for parameter in group["params"]
        }
        kinds = set()
        for name, parameter in network.named_parameters():
            if name.startswith("backbone.stem"):
                assert id(parameter) not in found, name
                continue
            rate = 0.5 * (3 if name.startswith(new) else 1)
            is_bias = name.endswith(".bias")
            expected = (2 * rate, 0.0) if is_bias else (rate, 0.25)
            assert found.pop(id(parameter)) == expected, name
            kinds.add(expected)
        assert not found
        assert len(kinds) >= 3


def test_an_epoch_is_a_permutation_without_its_last_incomplete_batch(tmp_path: Path) -> None:
    recorder = Recorder()
    _train(recorder, tmp_path)
    assert len(recorder.batches) == STEPS
    orders = [
        recorder.batches[2 * epoch][0] + recorder.batches[2 * epoch + 1][0]
        for epoch in range(EPOCHS)
    ]
    for order in orders:
        assert len(set(order)) == 8
        assert set(order) <= set(range(NUM_SAMPLES))
    assert len({tuple(order) for order in orders}) == EPOCHS
    assert set().union(*orders) == set(range(NUM_SAMPLES))


def test_augmentation_differs_between_epochs_and_rows(tmp_path: Path) -> None:
    recorder = Recorder()
    _train(recorder, tmp_path)
    draws = [draw for _, row in recorder.batches for draw in row]
    assert len(set(draws)) == STEPS * BATCH


def test_a_batch_beyond_the_data_is_refused(tmp_path: Path, tiny_images: ImageSet) -> None:
    message = r"\.train\.batch_size is 11.* 10 images.* at most 10"
    with pytest.raises(ConfigError, match=f"toy{message}"):
        _train(Recorder(), tmp_path, batch_size=NUM_SAMPLES + 1)
    recipe = tiny_recipe("affinity.train.batch_size=11")
    with pytest.raises(ConfigError, match=f"affinity{message}"):
        train_method(recipe, tiny_images, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_stage_and_step(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^toy: the loss is inf at step 3: lower toy\.train"):
        _train(Recorder(spoil_at=3), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.9), ("adamw", 0.0)])
@pytest.mark.usefixtures("save_every_step")
def test_the_result_does_not_depend_on_where_a_run_resumed(
    tmp_path: Path, optimizer: str, momentum: float
) -> None:
    changes = {"optimizer": optimizer, "momentum": momentum}
    straight = Recorder()
    _train(straight, tmp_path / "straight", **changes)
    for stop in (1, 3, 5):
        folder = tmp_path / str(stop)
        first, second = Recorder(stop_at=stop), Recorder()
        with pytest.raises(Stop):
            _train(first, folder, **changes)
        _train(second, folder, **changes)
        assert first.batches + second.batches == straight.batches
        for name, value in straight.network.state_dict().items():
            assert torch.equal(second.network.state_dict()[name], value), (stop, name)
        metrics = [(path / "metrics.jsonl").read_text() for path in (folder, tmp_path / "straight")]
        assert metrics[0] == metrics[1]


@pytest.mark.usefixtures("save_every_step")
def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    _train(first, tmp_path)
    _train(second, tmp_path)
    assert second.batches == []
    assert torch.equal(first.network.new.weight, second.network.new.weight)
    loop.finish(tmp_path)
    third = Recorder()
    _train(third, tmp_path)
    assert third.batches == first.batches


@pytest.mark.usefixtures("save_every_step")
def test_only_a_resume_file_of_the_same_training_counts(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _train(Recorder(stop_at=3), tmp_path)
    changed = Recorder()
    _train(changed, tmp_path, identity="b")
    assert len(changed.batches) == STEPS
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    damaged = Recorder()
    _train(damaged, tmp_path, identity="b")
    assert len(damaged.batches) == STEPS


def test_resume_files_are_written_seldom_where_they_cost_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of 10 seconds a step and 3 seconds a file: at most one second in twenty."""
    saved: list[int] = []
    clock = [0.0]

    def save(path: Path, network: nn.Module, optimizer: object, identity: str, step: int) -> None:
        saved.append(step)
        clock[0] += 3

    class Slow(Recorder):
        def terms(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            clock[0] += 10
            return super().terms(model, batch)

    monkeypatch.setattr(loop, "_save_resume", save)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    _train(Slow(), tmp_path, epochs=12)
    # The first after more than 30 s, the others after more than 60 s = 3 s / 0.05.
    assert saved == [4, 11, 18]


def test_seeds_shape_order_and_augmentation(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    _train(one, tmp_path / "1", seed=1)
    _train(two, tmp_path / "2", seed=2)
    assert one.batches[0][0] != two.batches[0][0]
    assert one.batches[0][1] != two.batches[0][1]


@pytest.mark.parametrize(("precision", "mixed"), [("auto", False), ("bfloat16", True)])
def test_precision(tmp_path: Path, precision: str, mixed: bool) -> None:
    recorder = Recorder()
    _train(recorder, tmp_path, precision=precision)
    assert recorder.autocast == [mixed] * STEPS


def test_validation_runs_after_each_epoch_in_evaluation_mode(tmp_path: Path) -> None:
    recorder, modes = Recorder(), []

    def validate() -> dict[str, float]:
        modes.append((len(recorder.batches), recorder.network.training))
        return {"val_figure": 0.5}

    train(
        recorder.objective(),
        _settings(),
        tmp_path,
        seed=0,
        identity="a",
        device=CPU,
        progress=SILENT,
        name="toy",
        validate=validate,
    )
    assert modes == [(2, False), (4, False), (6, False)]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_figure" in row] == [2, 4, 6]
    assert not recorder.network.training


class Preparing(Recorder):
    """Makes a number of the network before each epoch, as a round of labels; a sample needs it."""

    def __init__(self, folder: Path, **options: int) -> None:
        super().__init__(**options)
        self.folder, self.calls = folder, list[tuple[int, int, bool]]()

    def prepare(self, epoch: int) -> None:
        self.calls.append((epoch, len(self.batches), self.network.training))
        path = self.folder / f"prepared_{epoch}"
        self.current = path
        if not path.exists():
            path.write_text(repr(float(self.network.new.weight.detach().sum())))

    def sample(self, index: int, generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        arrays = super().sample(index, generator)
        return arrays | {"draw": np.float32(arrays["draw"] + float(self.current.read_text()))}

    def train(self, settings: TrainSettings) -> None:
        train(
            self.objective(),
            settings,
            self.folder,
            seed=0,
            identity="a",
            device=CPU,
            progress=SILENT,
            name="toy",
            prepare=self.prepare,
        )


def test_an_epoch_is_prepared_before_any_of_its_samples_is_read(tmp_path: Path) -> None:
    plain, prepared = Recorder(), Preparing(tmp_path)
    _train(plain, tmp_path / "plain", seed=0)
    prepared.train(_settings())
    assert prepared.calls == [(0, 0, False), (1, 2, False), (2, 4, False)]
    assert [batch for batch, _ in prepared.batches] == [batch for batch, _ in plain.batches]
    for step, (_, draws) in enumerate(prepared.batches):
        added = float((tmp_path / f"prepared_{step // 2}").read_text())
        expected = [draw + added for draw in plain.batches[step][1]]
        assert draws == pytest.approx(expected, abs=1e-6)
    assert not prepared.network.training


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_resumed_training_learns_what_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, every_step: bool
) -> None:
    if every_step:
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(loop, "MAX_SAVE_SHARE", float("inf"))
    straight = Preparing(tmp_path / "straight")
    straight.folder.mkdir()
    straight.train(_settings())
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Stop):
        Preparing(folder, stop_at=stop_at).train(_settings())
    resumed = Preparing(folder)
    resumed.train(_settings())
    # Without a file of each step it goes on where the epoch began.
    assert len(resumed.batches) == STEPS - (stop_at if every_step else stop_at // 2 * 2)
    for own, other in zip(straight.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(own, other)
    for epoch in range(EPOCHS):
        name = f"prepared_{epoch}"
        assert (folder / name).read_text() == (straight.folder / name).read_text()
