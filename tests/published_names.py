"""Names and shapes as published weights have them, written down independently of the package."""

import torch

from wsss.training.backbones.build import build_backbone
from wsss.training.backbones.parameters import parameter_groups


def constants(shapes):
    """A tensor of one own value for each name; stored as a single number."""
    return {
        name: torch.tensor(1 + index / 8).expand(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }


def batch_norm(name, channels):
    shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias")}
    shapes |= {f"{name}.running_{part}": (channels,) for part in ("mean", "var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def torchvision_resnet50():
    """Key names and shapes as `torchvision.models.resnet50().state_dict()` has them."""
    shapes = {"conv1.weight": (64, 3, 7, 7)} | batch_norm("bn1", 64)
    width = 64
    for stage, (blocks, middle) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (middle, width, 1, 1)
            shapes |= batch_norm(f"{name}.bn1", middle)
            shapes[f"{name}.conv2.weight"] = (middle, middle, 3, 3)
            shapes |= batch_norm(f"{name}.bn2", middle)
            shapes[f"{name}.conv3.weight"] = (4 * middle, middle, 1, 1)
            shapes |= batch_norm(f"{name}.bn3", 4 * middle)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * middle, width, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", 4 * middle)
            width = 4 * middle
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


VGG16_WIDTHS = (
    64,
    64,
    "pool",
    128,
    128,
    "pool",
    *(256,) * 3,
    "pool",
    *(512,) * 3,
    "pool",
    *(512,) * 3,
)


def torchvision_vgg16(*, head=True):
    shapes, position, width = {}, 0, 3
    for output in VGG16_WIDTHS:
        if output == "pool":
            position += 1
            continue
        shapes[f"features.{position}.weight"] = (output, width, 3, 3)
        shapes[f"features.{position}.bias"] = (output,)
        position, width = position + 2, output
    sizes = ((0, 4096, 25088), (3, 4096, 4096), (6, 1000, 4096)) if head else ()
    for index, output, width in sizes:
        shapes[f"classifier.{index}.weight"] = (output, width)
        shapes[f"classifier.{index}.bias"] = (output,)
    return shapes


def mxnet_resnet38():
    """Names of `ilsvrc-cls_rna-a1_cls1000`: unit a, then b1, b2, ... of each stage."""
    names = {"conv1a_weight": "conv1a.weight"}

    def norm(theirs, ours):
        for key, part in (("gamma", "weight"), ("beta", "bias")):
            names[f"{theirs}_{key}"] = f"{ours}.{part}"
        for part in ("mean", "var"):
            names[f"{theirs}_moving_{part}"] = f"{ours}.running_{part}"

    for stage, units in ((2, 3), (3, 3), (4, 6), (5, 3), (6, 1), (7, 1)):
        for unit in range(units):
            theirs = f"{stage}b{unit}" if unit else f"{stage}a"
            ours = f"b{stage}_{unit}" if unit else f"b{stage}"
            branches = ["2a", "2b1", "2b2"] if stage >= 6 else ["2a", "2b1"]
            for branch in branches:
                norm(f"bn{theirs}_branch{branch}", f"{ours}.bn_branch{branch}")
            for branch in branches + (["1"] if unit == 0 else []):
                names[f"res{theirs}_branch{branch}_weight"] = f"{ours}.conv_branch{branch}.weight"
    norm("bn7", "bn7")
    return names


def save_pth(path, content):
    torch.save(content, path)
    return path


def small_weights():
    torch.manual_seed(8)
    return dict(build_backbone("small").state_dict())


def assert_filled(backbone, expected):
    state = backbone.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def marked_new(backbone):
    groups = parameter_groups(backbone)
    new = {id(p) for kind in ("weights", "biases") for p in groups[f"new_{kind}"]}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in new}
