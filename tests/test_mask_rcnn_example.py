"""The example that trains Mask R-CNN: all of it that needs no torchvision."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from colour_model import ColourModel
from drawn_instances import CLASSES, write_scenes

from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.io.image_io import read_image
from wsss.training.data.readers import read_image_set
from wsss.training.predict.measure import measure_instances

PATH = Path(__file__).parents[1] / "docs" / "examples" / "train_mask_rcnn.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_mask_rcnn", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Photographs, what is in them, and the file of a job that found just that."""
    folder = tmp_path_factory.mktemp("scenes")
    shown = {name: found for name, (_, found) in write_scenes(folder).items()}
    images, out = folder / "JPEGImages", folder / "labels"
    label_in_bulk([images], ColourModel(), out, settings=Settings(("coco-instances",)))
    return SimpleNamespace(folder=folder, images=images, file=out / "instances.json", shown=shown)


def test_targets_are_the_instances(example: ModuleType, scenes: SimpleNamespace) -> None:
    examples = example.CocoInstances(scenes.images, scenes.file, mirror=False)
    names = sorted(name for name, found in scenes.shown.items() if len(found))
    assert len(examples) == len(names) < len(scenes.shown)
    assert examples.names == list(CLASSES)
    for (image, target), name in zip(
        (examples[i] for i in range(len(examples))), names, strict=True
    ):
        found = scenes.shown[name]
        pixels = read_image(scenes.images / f"{name}.png")
        np.testing.assert_allclose(image.permute(1, 2, 0) * 255, pixels, atol=1e-4)
        assert target["labels"].tolist() == (found.classes + 1).tolist()
        assert target["masks"].dtype == torch.uint8 and target["boxes"].dtype == torch.float32
        for row, (mask, box) in enumerate(zip(target["masks"], target["boxes"], strict=True), 1):
            np.testing.assert_array_equal(mask, found.ids == row)
            rows, columns = np.nonzero(found.ids == row)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges


def test_mirrored_images_take_their_masks_along(
    example: ModuleType, scenes: SimpleNamespace
) -> None:
    plain = example.CocoInstances(scenes.images, scenes.file, mirror=False)[0]
    mirrored = example.CocoInstances(scenes.images, scenes.file)
    torch.manual_seed(0)
    kinds = set()
    for _ in range(16):
        image, target = mirrored[0]
        is_turned = bool((image != plain[0]).any())
        kinds.add(is_turned)
        wanted = plain[1]["masks"].flip(2) if is_turned else plain[1]["masks"]
        assert torch.equal(image, plain[0].flip(2) if is_turned else plain[0])
        assert torch.equal(target["masks"], wanted)
        assert torch.equal(target["boxes"], example.boxes_around(wanted))
    assert kinds == {True, False}


def test_scores_and_crowds(example: ModuleType, scenes: SimpleNamespace, tmp_path: Path) -> None:
    document = json.loads(scenes.file.read_text())
    scores = sorted(item["score"] for item in document["annotations"])
    limit = scores[len(scores) // 2]
    examples = example.CocoInstances(scenes.images, scenes.file, least_score=limit)
    kept = sum(len(examples[i][1]["labels"]) for i in range(len(examples)))
    assert kept == sum(score >= limit for score in scores)
    for item in document["annotations"]:
        del item["score"]
        item["iscrowd"] = int(item["category_id"] == 1)
    (tmp_path / "truth.json").write_text(json.dumps(document))
    examples = example.CocoInstances(scenes.images, tmp_path / "truth.json", least_score=0.5)
    labels = torch.cat([examples[i][1]["labels"] for i in range(len(examples))])
    assert set(labels.tolist()) == {2}


def test_learning_rates(example: ModuleType) -> None:
    at = {step: example.rate_factor(step, 18_000) for step in (0, 250, 500, 11_999, 12_000, 16_000)}
    assert at == pytest.approx({0: 1 / 3, 250: 2 / 3, 500: 1, 11_999: 1, 12_000: 0.1, 16_000: 0.01})


class Slope(torch.nn.Module):
    """Two losses that pull a number down, as the detectors of torchvision give theirs."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.frozen = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
        self.factor, self.seen = factor, []

    def forward(self, images, targets):
        assert self.training and len(images) == len(targets) == 4
        self.seen.append((self.number.item(), [int(t["labels"].sum()) for t in targets]))
        return {"loss_mask": self.number * self.factor, "loss_box": self.number}


def test_the_loop_descends(example: ModuleType, scenes: SimpleNamespace) -> None:
    examples = example.CocoInstances(scenes.images, scenes.file)
    model, said = Slope(), []
    torch.manual_seed(0)
    example.train(model, examples, 6, "cpu", said.append)
    # SGD with momentum on a slope of 2, by hand.
    number = speed = 0.0
    for step, (seen, _) in enumerate(model.seen):
        assert seen == pytest.approx(number, rel=1e-4)
        speed = 0.9 * speed + 2 + 1e-4 * number
        number -= 0.01 * example.rate_factor(step, 6) * speed
    assert len(model.seen) == 6
    assert len({tuple(labels) for _, labels in model.seen}) > 1  # other images each time
    (line,) = said
    assert line.startswith("step 0 of 6: loss_mask ")
    with pytest.raises(SystemExit, match="the loss of step 0 is nan"):
        example.train(Slope(float("nan")), examples, 1, "cpu")


def test_nothing_to_learn(example: ModuleType, scenes: SimpleNamespace) -> None:
    examples = example.CocoInstances(scenes.images, scenes.file, least_score=2)
    with pytest.raises(SystemExit, match="no image has an instance"):
        example.train(Slope(), examples, 1, "cpu")


class Knowing(torch.nn.Module):
    """Says of each photograph what is in it, and one instance without a pixel."""

    def __init__(self, scenes: SimpleNamespace) -> None:
        super().__init__()
        self.found = [scenes.shown[name] for name in sorted(scenes.shown)]

    def forward(self, images):
        assert not self.training
        found = self.found.pop(0)
        inside = np.stack([found.ids == r + 1 for r in range(len(found))] + [found.ids < 0])
        return [
            {
                "labels": torch.from_numpy(np.append(found.classes, 0) + 1),
                "scores": torch.from_numpy(np.append(found.scores, np.float32(0.5))),
                "masks": torch.from_numpy(np.where(inside, 0.75, 0.25))[:, None],
            }
        ]


def test_results_can_be_measured(
    example: ModuleType, scenes: SimpleNamespace, tmp_path: Path
) -> None:
    found = example.predict(Knowing(scenes), scenes.images, CLASSES, "cpu")
    (tmp_path / "found.json").write_text(json.dumps(found))
    images = read_image_set(scenes.folder)
    ours = measure_instances(scenes.file, images)
    theirs = measure_instances(tmp_path / "found.json", images)
    assert theirs.classes == ours.classes and ours.ap50 > 5
    ids = [item["id"] for item in found["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_both_commands(
    example: ModuleType, scenes: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, results = tmp_path / "weights.pt", tmp_path / "found.json"
    lines = (
        f"train {scenes.images} {scenes.file} --steps 2 --out {weights} --device cpu",
        f"predict {scenes.images} {weights} --out {results} --device cpu",
    )
    models = []

    def network(num_classes: int) -> torch.nn.Module:
        assert num_classes == len(CLASSES)
        models.append(Slope())
        return models[-1]

    def predict(model: torch.nn.Module, *_: object) -> dict[str, list[object]]:
        assert model.number.item() == models[0].number.item() < 0
        return {"images": [], "categories": [], "annotations": []}

    with patch.multiple(example, network=network, predict=predict):
        for line in lines:
            with patch.object(sys, "argv", ["train_mask_rcnn.py", *line.split()]):
                example.main()
    assert str(weights) in capsys.readouterr().out
    assert json.loads(results.read_text())["images"] == []


def test_only_the_network_needs_torchvision(example: ModuleType) -> None:
    assert "torchvision" not in vars(example)
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ModuleNotFoundError, match="torchvision"):
            example.network(2)
