"""CIAN end to end: its stages, kills, two processes, and what its recipes refuse."""

from pathlib import Path

import cian_reference
import numpy as np
import pytest
import torch
from command_line import wsss
from method_contract import MethodContract
from tiny_run import (
    METHODS,
    TRAIN_NAMES,
    copy_run,
    start_group,
    tiny_recipe,
)

from wsss.errors import ConfigError
from wsss.runtime.io.image_io import read_image, read_label_map
from wsss.runtime.io.progress import SILENT
from wsss.training.data.image_set import ImageSet
from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.engine.loop import _epoch_order
from wsss.training.engine.metrics import read_metrics
from wsss.training.engine.networks import open_network
from wsss.training.engine.run import Run, read_stage
from wsss.training.methods.cian.losses import CIAN_NAMES
from wsss.training.methods.cian.network import CianSegmenter
from wsss.training.methods.cian.recipe import CianRecipe
from wsss.training.methods.cian.train import cian_objective, first_network
from wsss.training.methods.shared.crops import inside_cells, nearest_labels
from wsss.training.methods.shared.segmenter_network import segment_logits
from wsss.training.pipeline import TrainResult, train
from wsss.training.predict.measure import evaluate
from wsss.training.predict.run_predictor import RunPredictor
from wsss.training.predict.run_report import write_run_report
from wsss.training.recipe.recipe import Recipe
from wsss.training.recipes import load_recipe

NETWORKS = METHODS["cian"][1]
ROUNDS = NETWORKS[1:]
CPU = torch.device("cpu")
# The scale of the module starts at 0 and learns fast, so that statistics over both processes
# shape what is learnt.
SGD = ("optimizer=sgd", "learning_rate=0.02", "momentum=0.5", "new_layer_factor=5")


def _recipe(*overrides: str) -> Recipe:
    return tiny_recipe(*overrides, method="cian")


def _train(images: ImageSet, out: Path, *overrides: str, **options: object) -> TrainResult:
    return train(_recipe(*overrides), images, out, device="cpu", **options)  # type: ignore[arg-type]


class TestCian(MethodContract):
    method = "cian"
    cams_refused = r"`cams_path` leaves"
    refused = (
        ("cian.train.batch_size=15", r"cian: `train\.batch_size` is 15, must be a multiple of `gr"),
        ("segmenter.group_size=3", r"segmenter: `train\.batch_size` is 16, must be a multiple of "),
        ("cian.group_size=1", r"cian\.group_size is 1, must be greater than or equal to 2"),
        ("segmenter.head=linear", r"segmenter\.head is 'linear'"),
        ("segmenter.start=weights", r"segmenter\.start is 'weights'"),
        ("segmenter.loss=sec", r"segmenter\.loss is no key of this recipe"),
        ("cian.loss=sec", r"cian\.loss is no key of this recipe"),
        ("segmenter.sec.seed=2", r"segmenter\.sec is no key of this recipe"),
        ("walk.beta=8", "walk is no key of this recipe"),
        ("cian.train.augmentation.crop_size=128", r"cian\.train\..* is 128, must be k \* 8 \+ 1"),
    )
    epochs = tuple(f"{stage}.train.epochs=5" for stage in NETWORKS)
    kills = (
        ("cian", 6, "cian", "cian/weights.safetensors"),  # in the middle of the second epoch
        ("labels", 4, "labels", "labels/train_3.png"),
        ("segmenter", 5, "segmenter", "segmenter/weights.safetensors"),
    )
    shared = tuple(f"{stage}.train.{text}" for stage in ROUNDS for text in SGD)
    groups = (("cian",), ("labels", "segmenter"))

    def test_two_processes_compute_what_one_does(self, single: Path, double: Path) -> None:
        """Not slow, unlike those of other methods: the hardest of them stands for all.

        Batches in groups, a normalisation over both processes, and files that they share.
        """
        self.compare_processes(single, double)
        start, one, two = (
            load_checkpoint(run / stage / "weights.safetensors")[0]
            for run, stage in ((single, "cian"), (single, "segmenter"), (double, "segmenter"))
        )
        assert float(start["affinity.norm.weight"].abs().max()) > 1e-4
        mean = "affinity.norm.running_mean"
        assert not torch.allclose(one[mean], start[mean], rtol=1e-3)
        torch.testing.assert_close(two[mean], one[mean], rtol=1e-3, atol=2e-5)

    def test_figures(self, finished: Path) -> None:
        for stage in ("cian", "labels", "segmenter"):
            assert read_stage(finished / stage)["figures"].keys() == {"miou", "images"}

    def test_groups_are_not_split_over_processes(self, tiny_data: Path, tmp_path: Path) -> None:
        """Six images are three pairs: they cannot be shared evenly, though six images can."""
        out = tmp_path / "run"
        processes = start_group(tiny_data, out, ("cian.train.batch_size=6",), method="cian")
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [1, 1]
        message = (tmp_path / "error.0.txt").read_text()
        expected = "a batch of 6 images in groups of 2 cannot be shared by 2 processes: choose a mu"
        assert expected in message and message.endswith("choose a multiple of 4")
        assert not out.exists()


def _open(run: Path, stage: str) -> CianSegmenter:
    return open_network(CianSegmenter, run / stage / "weights.safetensors", CPU)[0]


@pytest.mark.parametrize("stage", ROUNDS)
def test_metrics_name_the_terms_and_rates_shrink_by_epochs(
    finished_cian_run: Path, stage: str
) -> None:
    rows = read_metrics(finished_cian_run / stage / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["loss"] == pytest.approx(sum(row[name] for name in CIAN_NAMES), rel=1e-5)
    base = getattr(_recipe(), stage).train.learning_rate
    rates = [base, base, base * 0.5**0.9, base * 0.5**0.9]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-12)


def test_rates_can_shrink_by_steps(tiny_images: ImageSet, tmp_path: Path) -> None:
    _train(tiny_images, tmp_path / "run", "cian.train.poly=step", stages=["cam", "seeds", "cian"])
    rows = read_metrics(tmp_path / "run" / "cian" / "metrics.jsonl")
    base = rows[0]["learning_rate"]
    expected = [base * left**0.9 for left in (1, 0.75, 0.5, 0.25)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("present_only", [False, True])
def test_labels_are_what_the_first_round_says(
    finished_cian_run: Path, tiny_images: ImageSet, tmp_path: Path, present_only: bool
) -> None:
    out = copy_run(finished_cian_run, tmp_path / "run", without=("labels", "segmenter"))
    path = out / "cian" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    head = tensors["head.0.weight"]
    tensors["head.0.weight"] = torch.randn(head.shape, generator=generator)  # sees all classes
    save_checkpoint(path, tensors, header)
    _train(tiny_images, out, f"labels.present_only={str(present_only).lower()}", stages=["labels"])
    network, section = _open(out, "cian"), _run_of(out, tiny_images).recipe_of(CianRecipe).cian
    absent = 0
    for sample in tiny_images.select("train").samples:
        planes = segment_logits(network, read_image(sample.image_path), section, "corners", CPU)
        present = [0, *(label + 1 for label in sample.labels or ())]
        free = planes.argmax(0).numpy()
        absent += int((~np.isin(free, present)).sum())
        expected = np.array(present)[planes[present].argmax(0).numpy()] if present_only else free
        stored = read_label_map(out / "labels" / f"{sample.name}.png")
        np.testing.assert_array_equal(stored, expected)
    assert absent > 0  # so the two ways differ
    for folder in (out / "labels", finished_cian_run / "seeds"):
        told = evaluate(folder, tiny_images, split="train").image_labels_used
        assert told == (present_only or folder.name == "seeds")


def test_the_second_round_starts_from_the_first_and_learns_its_labels(
    finished_cian_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    """One step at a rate of almost nothing leaves the first round's weights."""
    out = copy_run(finished_cian_run, tmp_path / "run", without=("segmenter",))
    still = "segmenter.train.learning_rate=1e-12"
    train(_recipe(still), tiny_images, out, device="cpu", stages=["segmenter"])
    first, second = (
        load_checkpoint(out / stage / "weights.safetensors")[0] for stage in ("cian", "segmenter")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        if "running" not in name:
            torch.testing.assert_close(second[name], value, rtol=0, atol=1e-8, msg=name)


def _run_of(folder: Path, images: ImageSet, *overrides: str) -> Run:
    return Run(folder, _recipe(*overrides), images, None, None, None, CPU, SILENT)


def _objective(run: Run, network: CianSegmenter, labels: str = "seeds"):  # type: ignore[no-untyped-def]
    return cian_objective(run, network, run.recipe_of(CianRecipe).cian, labels)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("align", ["corners", "reference"])
def test_the_loss_of_a_batch_is_the_published_one(
    finished_cian_run: Path, tiny_images: ImageSet, align: str, group_size: int
) -> None:
    run = _run_of(
        finished_cian_run,
        tiny_images,
        f"cam.align={align}",
        f"cian.group_size={group_size}",
        "cian.train.batch_size=6",
        "cian.label_stride=8",
    )
    network = _open(finished_cian_run, "cian").train()
    torch.nn.init.normal_(network.affinity.norm.weight, std=3)
    objective = _objective(run, network)
    samples = [objective.sample(i, np.random.default_rng([3, i])) for i in (0, 3, 6, 2, 5, 8)]
    batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
    labels = batch["labels"].numpy().astype(np.int64)
    labels[0, :2] = 255  # seeds leave something to be completed
    batch["labels"] = torch.from_numpy(labels)
    sums, counts = objective.terms(network, batch)
    seen = {}
    network.register_forward_hook(lambda _, given, found: seen.update(found=found))
    objective.terms(network, batch)
    own, cross = seen["found"].detach().double().numpy()
    inside = np.zeros(labels.shape, bool)
    first = 0 if align == "corners" else 4
    for image, row, column in np.ndindex(*labels.shape):
        top, left, bottom, right = batch["inside"][image].tolist()
        y, x = (min(8 * place + first, 32) for place in (row, column))
        inside[image, row, column] = top <= y < bottom and left <= x < right
    assert (labels[~inside] == 255).all()
    terms = cian_reference.loss(own, cross, labels, inside)
    assert objective.loss(sums, counts).item() == pytest.approx(sum(terms), rel=1e-5)
    figures = objective.figures(sums, counts)
    assert figures.tolist() == pytest.approx(list(terms), rel=1e-5)
    assert not np.allclose(own, cross, atol=1e-3)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_cells_are_inside_where_their_label_is_of_the_image(stride: int, corners: bool) -> None:
    inside = np.array([[0, 0, 33, 33], [3, 10, 20, 31], [32, 0, 33, 1]])
    batch = {"image": torch.zeros(3, 3, 33, 33), "inside": torch.from_numpy(inside)}
    found = inside_cells(batch, stride, "corners" if corners else "reference").numpy()
    for cells, (top, left, bottom, right) in zip(found, inside, strict=True):
        shown = np.zeros((33, 33), np.uint8)
        shown[top:bottom, left:right] = 1
        np.testing.assert_array_equal(cells, nearest_labels(shown, stride, corners=corners) == 1)


def test_groups_of_an_epoch_share_a_class_and_depend_on_seed_and_epoch(
    finished_cian_run: Path, tiny_images: ImageSet
) -> None:
    run = _run_of(finished_cian_run, tiny_images)
    samples = run.train_set.samples
    with torch.device("meta"):
        network = first_network(run.recipe_of(CianRecipe), 2).build()
    objective = _objective(run, network)  # type: ignore[arg-type]
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        order = _epoch_order(objective, seed, epoch)
        assert np.array_equal(order, _epoch_order(objective, seed, epoch))
        assert len(order) >= objective.num_samples and set(order) == set(range(len(samples)))
        batch_size = run.recipe_of(CianRecipe).cian.train.batch_size
        used = order[: len(samples) // batch_size * batch_size]
        with_classes = [index for index in used if samples[index].labels]
        assert len(set(with_classes)) == len(with_classes)  # nobody twice: there are partners
        for one, two in order.reshape(-1, 2):
            assert one == two or set(samples[one].labels or ()) & set(samples[two].labels or ())
        orders[seed, epoch] = order.tobytes()
    assert len(set(orders.values())) == len(orders)


def test_without_the_cross_branch_there_is_one_loss_and_no_groups(
    finished_cian_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    out = copy_run(finished_cian_run, tmp_path / "run", without=("cian", "labels", "segmenter"))
    settings = ("cian.cross_affinity=false", "cian.self_affinity=false")
    train(_recipe(*settings), tiny_images, out, device="cpu", stages=["cian"])
    assert not set(CIAN_NAMES) & set(read_metrics(out / "cian" / "metrics.jsonl")[0])
    network = _open(out, "cian")
    assert not network.self_affinity
    assert not network.affinity.norm.weight.any()  # nothing has trained it
    run = _run_of(out, tiny_images, *settings)
    assert _objective(run, network).order is None and _objective(run, network).group_size == 1


# What is refused, and what a run is good for


def test_published_values_of_the_recipe() -> None:
    recipe = load_recipe("cian_resnet101_voc12")
    assert isinstance(recipe, CianRecipe)
    first, second = recipe.cian, recipe.segmenter
    assert (first.channels, first.self_affinity, first.start) == (1024, True, "weights")
    assert not recipe.labels.present_only
    kernels = {
        "gaussian_sxy": 3.0,
        "gaussian_compat": 3.0,
        "bilateral_sxy": 80.0,
        "bilateral_srgb": 13.0,
        "bilateral_compat": 10.0,
    }
    assert first.crf.model_dump() == {"iterations": 10, **kernels}  # it makes the labels
    assert second.crf.model_dump() == {"iterations": 5, **kernels}
    for section in (first, second):
        train = section.train
        assert (section.group_size, section.cross_affinity, section.completion) == (2, True, 1)
        assert (section.balance, section.label_stride, section.output_stride) == (0, 8, 8)
        assert (section.scales, section.flip) == ((0.75, 1, 1.25), True)
        assert (train.batch_size, train.epochs, train.augmentation.crop_size) == (16, 20, 321)
        assert (train.optimizer, train.learning_rate, train.momentum) == ("sgd", 5e-4, 0.9)
        assert (train.weight_decay, train.biases, train.new_layer_factor) == (5e-4, "undecayed", 10)
        assert (train.poly, train.poly_power, train.frozen) == ("epoch", 0.9, ())
        assert train.augmentation.scale == (0.5, 1.5) and not any(train.augmentation.jitter)


def test_classifier_and_seeds_of_another_recipe_can_be_used_again() -> None:
    shared = {"backbone", "cam", "seeds", "data"}
    own, other = (
        load_recipe(name).model_dump(include=shared)
        for name in ("cian_mobilenetv2", "affinitynet_mobilenetv2")
    )
    assert own == other


def test_a_run_has_no_walk_but_labels_any_image(
    finished_cian_run: Path, tiny_images: ImageSet, tiny_data: Path, tmp_path: Path
) -> None:
    predictor = RunPredictor(finished_cian_run, "cpu")
    photo = tiny_images.select("val").samples[0].image_path
    image = read_image(photo)
    with pytest.raises(ConfigError, match=r"unknown mode .*: run .* has segmenter, cam"):
        predictor.predict_one(image, mode="labels")
    out, table = tmp_path / "out", tmp_path / "labels.csv"
    table.write_text(f"file,labels\n{photo.stem},disc\n")
    command = ("label", photo, "--model", finished_cian_run, "--out", out)
    for options, message in (
        (("--labels", table), "takes no image-level classes: leave them out, or choose mode 'cam'"),
        (("--mode", "cam", "--crf"), "has no dense CRF after mode 'cam': leave it out"),
    ):
        assert message in wsss(*command, *options).line()
    line = wsss("eval", finished_cian_run, "--data", tiny_data, "--mode", "labels").line()
    advised = ("eval", finished_cian_run / "labels", "--split", "train")
    assert line.endswith(f"measure those that it has made, '{advised[1]}', with --split train")
    wsss(*advised, "--data", tiny_data).succeeded()
    network = _open(finished_cian_run, "segmenter")
    recipe = predictor.recipe
    planes = segment_logits(network, image, recipe.segmenter, recipe.cam.align, CPU)
    np.testing.assert_array_equal(predictor.predict_one(image).label, planes.argmax(0).numpy())


def test_seeds_of_another_run_are_learnt_from(
    finished_cian_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    """`--seeds RUN/labels`: better labels take the place of the seeds."""
    given = finished_cian_run / "labels"
    _train(tiny_images, tmp_path / "run", stages=["cam", "seeds"], seeds_path=given)
    for name in TRAIN_NAMES:
        found = read_label_map(tmp_path / "run" / "seeds" / f"{name}.png")
        np.testing.assert_array_equal(found, read_label_map(given / f"{name}.png"))


def test_the_report_shows_both_rounds_and_no_walk(
    finished_cian_run: Path, tiny_images: ImageSet, tmp_path: Path
) -> None:
    out = copy_run(finished_cian_run, tmp_path / "run")
    page = write_run_report(out, tiny_images, device="cpu").read_text()
    assert "segmenter of images that share a class" in page and "cian: loss" in page
    assert "completion cross" in page
    assert ">walk<" not in page and "pseudo labels" in page
