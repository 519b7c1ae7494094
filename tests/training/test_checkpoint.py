"""Checkpoints come back as they were written, and nothing else is taken for one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from wsss.errors import ArtifactError, WsssError
from wsss.training.engine.checkpoint import (
    FORMAT_VERSION,
    load_checkpoint,
    load_into,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from wsss.training.engine.networks import NetworkSpec, open_network, save_network
from wsss.training.methods.shared.classifier import CamClassifier

CPU = torch.device("cpu")
CLASSIFIER = NetworkSpec(CamClassifier, "small", 8, {"num_classes": 2})
NEW = CLASSIFIER.to_header()
OLD = {
    "kind": "classifier",
    "backbone": "small",
    "output_stride": 8,
    "num_classes": 2,
    "head": "",
    "align": "corners",
}
"""The same in a checkpoint of format 1."""


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, generator=generator)
    return {
        "weight": weight,
        "turned": weight.T,
        "half": weight.half(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 4),
    }


def _layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    save_checkpoint(path, _tensors(), {"step": 4, "names": ["ä", "b"]})
    tensors, header = load_checkpoint(path)
    assert header == {"format_version": FORMAT_VERSION, "step": 4, "names": ["ä", "b"]}
    assert tensors.keys() == _tensors().keys()
    for name, expected in _tensors().items():
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected), name
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save_checkpoint(tmp_path / name, _tensors(), {"y": 1, "x": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_is_refused(tmp_path: Path, bad: float) -> None:
    weight = torch.ones(3)
    weight[1] = bad
    save_checkpoint(tmp_path / "a", {"fine": torch.ones(2), "layer.weight": weight}, {})
    with pytest.raises(ArtifactError, match=r"'layer\.weight' holds NaN or infinity"):
        load_checkpoint(tmp_path / "a")


def test_tensors_must_fit_one_by_one() -> None:
    layer, path = _layer(), Path("x.safetensors")
    good = {name: value.clone() for name, value in layer.state_dict().items()}
    load_into(layer, good, path)
    cases = {
        r"x\.safetensors' lacks tensor 'bias'": {"weight": good["weight"]},
        r"has tensor 'extra', which no layer takes": good | {"extra": torch.ones(1)},
        r"tensor 'bias' is \(4,\), expected \(3,\)": good | {"bias": torch.ones(4)},
    }
    for message, tensors in cases.items():
        with pytest.raises(ArtifactError, match=message):
            load_into(layer, tensors, path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "plain")
    save_file({"weight": torch.ones(2)}, tmp_path / "list", metadata={"wsss": "[1]"})
    save_file({"weight": torch.ones(2)}, tmp_path / "text", metadata={"wsss": "no json"})
    for name in ("plain", "list", "text"):
        with pytest.raises(ArtifactError, match="was not written by wsss: give foreign weights"):
            load_checkpoint(tmp_path / name)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"format_version": FORMAT_VERSION + 1})
    save_file({"weight": torch.ones(2)}, tmp_path / "a", metadata={"wsss": header})
    with pytest.raises(ArtifactError, match=f"has format version {FORMAT_VERSION + 1}"):
        load_checkpoint(tmp_path / "a")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", _tensors(), {"step": 1})
    data = (tmp_path / "whole").read_bytes()
    for length in (0, 4, 8, 20, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ArtifactError, match="cut' cannot be read"):
            load_checkpoint(tmp_path / "cut")


@pytest.mark.parametrize("name", ["absent", "."])
def test_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_checkpoint(tmp_path / name)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="cannot be read: it does not exist or is no file"):
        load_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", '{"a": ' + "9" * 5000 + "}"])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a", metadata={"wsss": text})
    with pytest.raises(ArtifactError, match="was not written by wsss"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_continues_as_if_never_interrupted(tmp_path: Path, kind: str) -> None:
    def make(layer: nn.Linear) -> torch.optim.Optimizer:
        if kind == "sgd":
            return torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.linspace(-1, 1, 10).view(2, 5)).square().sum().backward()
        optimizer.step()

    straight, other = _layer(), _layer()
    optimizer = make(straight)
    step(straight, optimizer)
    save_checkpoint(tmp_path / "a", pack_optimizer(optimizer), {})
    other.load_state_dict(straight.state_dict())
    resumed = make(other)
    unpack_optimizer(resumed, load_checkpoint(tmp_path / "a")[0])
    step(straight, optimizer)
    step(other, resumed)
    assert torch.equal(straight.weight, other.weight)
    forgetful = _layer()
    step(forgetful, make(forgetful))
    assert not torch.equal(straight.weight, forgetful.weight)


def test_networks_open_as_they_were_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = CLASSIFIER.build()
    path = tmp_path / "weights.safetensors"
    save_network(path, network, CLASSIFIER, ("disc", "bar"), "affinitynet")
    assert load_checkpoint(path)[1]["network"] == NEW
    opened, classes = open_network(CamClassifier, path, CPU)
    assert (classes, opened.num_classes, opened.training) == (("disc", "bar"), 2, False)
    assert opened.backbone.normalisation == network.backbone.normalisation
    for name, value in network.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["disc"]}, "class list and network do not fit"),
        ({"classes": None}, "damaged header"),
        ({"network": {"class": "CamClassifier"}}, "damaged header"),
        ({"network": NEW | {"backbone": "oracle"}}, r"' has a damaged header: unknown backbone"),
        ({"network": NEW | {"backbone": "\x1b[31mX"}}, r"backbone is '\\x1b\[31mX'"),
        ({"network": NEW | {"class": "Network"}}, "holds a network of class 'Network'"),
        ({"network": NEW | {"arguments": {"num_classes": True}}}, "'num_classes' is True"),
        ({"network": NEW | {"output_stride": 5}}, "no output stride 5"),
        ({"network": NEW | {"backbone": ["small"]}}, r"backbone is \['small'\]"),
        ({"network": NEW | {"arguments": {"num_classes": 2.0}}}, "argument 'num_classes' is 2.0"),
        ({"network": NEW | {"arguments": {"num_classes": 10**9}}}, "'num_classes' is 1000000000"),
        ({"network": NEW | {"arguments": {"backbone": "small"}}}, "argument 'backbone' is"),
        ({"network": NEW | {"arguments": {"a\nb": 1}}}, r"argument 'a\\nb' is 1"),
        ({"network": NEW | {"arguments": {}}}, "damaged header: .*num_classes"),
        (
            {"network": NEW | {"class": "Oracle"}, "wsss": "9.1"},
            r"holds a network of class 'Oracle', written by wsss '9\.1', which this wsss .* does",
        ),
        ({"architecture": {"kind": "classifier"}}, "damaged header"),
        ({"architecture": OLD | {"kind": "oracle"}}, "unknown kind of network"),
        ({"architecture": OLD | {"kind": ""}}, "unknown kind of network"),
        ({"architecture": OLD | {"backbone": "oracle"}}, "oracle"),
        ({"architecture": OLD | {"output_stride": 5}}, "no output stride 5"),
        ({"architecture": OLD | {"kind": "a\nb"}}, r"architecture is .*'a\\nb'"),
        ({"architecture": OLD | {"num_classes": 2.0}}, "architecture is"),
        ({"architecture": OLD | {"align": "left"}}, "architecture is"),
        ({"classes": ["disc", None]}, "damaged header: classes are no texts"),
        ({"normalisation": {"scale": 1}}, "normalisation is"),
    ],
)
def test_damaged_headers_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    save_network(path, CLASSIFIER.build(), CLASSIFIER, ("disc", "bar"), "affinitynet")
    tensors, header = load_checkpoint(path)
    save_checkpoint(path, tensors, header | change)
    with pytest.raises(WsssError, match=message):
        open_network(CamClassifier, path, CPU)


def test_checkpoints_of_format_1_open(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    network = CLASSIFIER.build()
    save_network(path, network, CLASSIFIER, ("disc", "bar"), "affinitynet")
    tensors, header = load_checkpoint(path)
    del header["network"], header["wsss"]
    header |= {"architecture": OLD}
    data = json.loads(json.dumps(header | {"format_version": 1}))
    path.write_bytes(save(tensors, metadata={"wsss": json.dumps(data)}))
    opened, classes = open_network(CamClassifier, path, CPU)
    assert classes == ("disc", "bar")
    for name, value in network.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_network(path, CLASSIFIER.build(), CLASSIFIER, ("disc", "bar"), "affinitynet")
    tensors, header = load_checkpoint(path)
    three = NEW | {"arguments": {"num_classes": 3}}
    save_checkpoint(path, tensors, header | {"network": three, "classes": ["a", "b", "c"]})
    with pytest.raises(ArtifactError, match=r"'classifier\.weight' is \(2, 96, 1, 1\), expected"):
        open_network(CamClassifier, path, CPU)
