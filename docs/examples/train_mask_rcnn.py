"""Trains torchvision's Mask R-CNN on the instances that `wsss label` found, and measures it.

    wsss label photos --model bundle --labels labels.csv --instances --out labels
    pip install torchvision
    python train_mask_rcnn.py train photos labels/instances.json --out mask_rcnn.pt
    python train_mask_rcnn.py predict VOC2012/JPEGImages mask_rcnn.pt --out found.json
    wsss eval found.json --data VOC2012 --split val --instances

torchvision is the optional dependency; it must fit the torch that is installed. **Never trained by
us**: where this was written no torchvision loads beside the CPU build of torch, and its ImageNet
weights cannot be fetched. What was done: one step of training, prediction and evaluation of small
drawn images with the Python code of torchvision 0.28.0, its two compiled operators (nms,
roi_align) replaced by torch code, from weights by chance. tests/test_mask_rcnn_example.py checks
images, boxes, masks, labels, learning rates, the loop and the results without torchvision.

Settings: those that IRNet's authors used with Detectron (ResNet50-FPN from ImageNet, base learning
rate 0.01, 18,000 steps of 4 images, a tenth of it from 12,000 and 16,000 on, weight decay 1e-4,
short side 512 and long side up to 800 in training and test; irn issue 11); momentum, warm-up and
mirrored images are Detectron's defaults. What they got on VOC val from labels of its train list:
AP50 46.7, AP70 23.5. ImageNet weights alone: COCO weights would be supervision by masks.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wsss.runtime.bulk.formats.runs import coco_text, regions
from wsss.runtime.io.files import IMAGE_SUFFIXES
from wsss.runtime.io.image_io import read_image
from wsss.training.data.coco_masks import rasterise

BASE_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
STEPS, BATCH = 18_000, 4
DROPS = (12 / 18, 16 / 18)
"""Shares of the steps after which the learning rate falls to a tenth."""
WARM_UP = 500
"""Steps in which the learning rate rises from a third."""
SHORT_SIDE, LONG_SIDE = 512, 800

Example = tuple[Tensor, dict[str, Tensor]]


class CocoInstances(Dataset[Example]):
    """Images that have instances, as torchvision's detectors take them.

    An item is an image, (3, H, W) float in [0, 1], and its target: boxes (N, 4) float of x0, y0,
    x1, y1 around the pixels, labels (N,) from 1, masks (N, H, W) uint8.

    Attributes:
        names: of the classes; label 1 is the first.
    """

    def __init__(
        self, folder: Path, annotations: Path, *, least_score: float = 0, mirror: bool = True
    ) -> None:
        """
        Args:
            folder: that the file names of the images are relative to.
            annotations: COCO JSON; annotations without a score count as 1.
            least_score: instances below it are left out.
            mirror: turn every second image over, by chance.
        """
        document = json.loads(annotations.read_bytes())
        categories = sorted(document["categories"], key=lambda category: category["id"])
        self.names = [str(category["name"]) for category in categories]
        self._labels = {category["id"]: place for place, category in enumerate(categories, 1)}
        found = defaultdict(list)
        for item in document["annotations"]:
            if not item.get("iscrowd") and item.get("score", 1) >= least_score:
                found[item["image_id"]].append(item)
        self._items = [
            (folder / image["file_name"], found[image["id"]])
            for image in document["images"]
            if found[image["id"]]
        ]
        self._mirror = mirror

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        path, items = self._items[index]
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1).float() / 255
        height, width = image.shape[1:]
        inside = np.stack([rasterise(item["segmentation"], height, width) for item in items])
        masks = torch.from_numpy(inside.astype(np.uint8))
        labels = torch.tensor([self._labels[item["category_id"]] for item in items])
        if self._mirror and torch.rand(()) < 0.5:
            image, masks = image.flip(2), masks.flip(2)
        return image, {"boxes": boxes_around(masks), "labels": labels, "masks": masks}


def boxes_around(masks: Tensor) -> Tensor:
    """(N, 4) float of x0, y0, x1, y1: the edges of the pixels, so that x1 - x0 is the width.

    Args:
        masks: (N, H, W), none without a pixel.
    """
    edges = []
    for axis in (1, 2):  # over rows: which columns have a pixel; then over columns
        has = masks.amax(axis) > 0
        edges.append((has.int().argmax(1), has.shape[1] - has.flip(1).int().argmax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack((left, top, right, bottom), 1).float()


def rate_factor(step: int, num_steps: int) -> float:
    """Of the base learning rate, for the step with this number (from 0)."""
    warm_up = min(1.0, 1 / 3 + 2 / 3 * step / WARM_UP)
    return float(warm_up * 0.1 ** sum(step >= share * num_steps for share in DROPS))


def train(
    model: nn.Module,
    examples: Dataset[Example],
    num_steps: int,
    device: str,
    say: Callable[[str], None] = print,
) -> None:
    """Train for so many steps; the model gives its losses by name, as torchvision's do."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=BASE_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    model.to(device).train()
    for step, batch in zip(range(num_steps), batches(examples), strict=False):
        images = [image.to(device) for image, _ in batch]
        targets = [{key: value.to(device) for key, value in t.items()} for _, t in batch]
        losses = model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss of step {step} is {loss.item()}: lower BASE_RATE")
        for group in optimizer.param_groups:
            group["lr"] = BASE_RATE * rate_factor(step, num_steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            say(f"step {step} of {num_steps}: {parts}")


def batches(examples: Dataset[Example]) -> Iterator[list[Example]]:
    """Without end, in a new order each time round."""
    if not len(examples):  # type: ignore[arg-type]
        raise SystemExit("no image has an instance: there is nothing to learn")
    loader = DataLoader(
        examples, min(BATCH, len(examples)), shuffle=True, drop_last=True, collate_fn=list
    )  # type: ignore[arg-type]
    while True:
        yield from loader


def network(num_classes: int) -> nn.Module:
    """Mask R-CNN for so many classes without background; loads ImageNet weights of ResNet50."""
    from torchvision.models import ResNet50_Weights
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model: nn.Module = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=ResNet50_Weights.IMAGENET1K_V1,
        num_classes=num_classes + 1,
        min_size=SHORT_SIDE,
        max_size=LONG_SIDE,
        rpn_pre_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
        box_nms_thresh=0.5,
    )
    return model


@torch.no_grad()
def predict(model: nn.Module, folder: Path, names: Sequence[str], device: str) -> dict[str, Any]:
    """COCO JSON with a score an annotation, of all images of a folder."""
    model.to(device).eval()
    images, annotations = [], []
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
    for image_id, path in enumerate(sorted(paths), 1):
        pixels = read_image(path)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        (found,) = model([tensor.to(device)])
        name = path.relative_to(folder).as_posix()
        height, width = pixels.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + n, "image_id": image_id, **item}
            for n, item in enumerate(_annotations(found), 1)
        ]
    categories = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _annotations(found: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Of what the model says of one image: labels, scores, masks (N, 1, H, W) in [0, 1]."""
    rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["masks"], strict=True)
    for label, score, soft in rows:
        mask = (soft[0] >= 0.5).cpu().numpy().astype(np.uint8)
        for region in regions(mask.T):  # one, or none where no pixel reaches a half
            code = {"size": list(mask.shape), "counts": coco_text(region.counts)}
            yield {"category_id": label, "segmentation": code, "score": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("images", type=Path, help="folder that was labelled")
    training.add_argument("annotations", type=Path, help="instances.json of the job")
    training.add_argument("--least-score", type=float, default=0.0)
    training.add_argument("--steps", type=int, default=STEPS)
    predicting = commands.add_parser("predict")
    predicting.add_argument("images", type=Path, help="folder of the images to predict")
    predicting.add_argument("weights", type=Path, help="what `train` wrote")
    for each in (training, predicting):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.command == "train":
        examples = CocoInstances(given.images, given.annotations, least_score=given.least_score)
        print(f"{len(examples)} images with instances, {len(examples.names)} classes")
        model = network(len(examples.names))
        train(model, examples, given.steps, given.device)
        torch.save({"names": examples.names, "weights": model.state_dict()}, given.out)
    else:
        stored = torch.load(given.weights, map_location="cpu", weights_only=True)
        model = network(len(stored["names"]))
        model.load_state_dict(stored["weights"])
        found = predict(model, given.images, stored["names"], given.device)
        given.out.write_text(json.dumps(found))
        print(f"{len(found['annotations'])} instances in {len(found['images'])} images")
    print(given.out)


if __name__ == "__main__":
    main()
