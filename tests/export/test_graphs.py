"""Every exported graph against the torch code that training uses, over the settings of recipes."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from all_pairs import all_pairs
from traced_once import traced_afresh
from untrained_run import CLASSES, untrained_recipe, write_untrained_run

from wsss.errors import ArtifactError, ConfigError
from wsss.export.bundle import write_graphs
from wsss.export.graphs.builder import IR_VERSION, OPSET, Builder
from wsss.export.graphs.geometry import add_grid_size, add_scaled_size
from wsss.export.graphs.subgraph import needed_nodes
from wsss.export.parity.first_difference import first_difference
from wsss.export.parity.parity import check_parity, compare, drawn_cases
from wsss.export.parity.reference import ParityCase, feeds, reference_outputs
from wsss.export.source import ExportSource, graphs_of, open_source
from wsss.runtime.backends.registry import open_graph
from wsss.runtime.refine.geometry import grid_size, scaled_size
from wsss.training.demo.scenes import draw_scene
from wsss.training.methods import open_method

pytest.importorskip("onnxscript", reason="needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

GRAPHS = graphs_of(open_method("affinitynet"))

REFERENCE = ("cam.align=reference", "walk.background=power", "walk.borders=reference")
RECIPES = {
    "corners": (),
    "corners, no mirrors": ("cam.flip=false", "segmenter.flip=false", "cam.scales=[0.5]"),
    "corners, power": ("walk.background=power", "walk.alpha=4", "walk.scales=[1.0,1.5]"),
    "reference": (*REFERENCE, "cam.scales=[1.0,0.5,1.5]", "segmenter.scales=[1.0,0.75]"),
    "reference, constant": ("cam.align=reference", "walk.scales=[0.5,1.0]", "cam.map_stride=8"),
    "reference, full size": (*REFERENCE, "cam.map_stride=1", "walk.scales=[1.5]"),
    "stride 16": ("backbone.output_stride=16", "segmenter.scales=[1.0,1.25]"),
}


def _default(name: str) -> object:
    """Tracing three networks takes seconds: two recipes, one of each alignment, go by default."""
    slow = () if name in ("corners", "reference") else (pytest.mark.slow,)
    return pytest.param(name, marks=slow)


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, networks_traced_once: None
) -> Callable[..., ExportSource]:
    """The export source of a recipe with changes; each is traced once."""
    known: dict[tuple[str, ...], ExportSource] = {}

    def open_(*overrides: str) -> ExportSource:
        if overrides not in known:
            crops = [f"{s}.train.augmentation.crop_size=65" for s in ("affinity", "segmenter")]
            folder = tmp_path_factory.mktemp("untrained") / "run"
            recipe = untrained_recipe(*crops, *overrides)
            known[overrides] = open_source(write_untrained_run(folder, recipe), None, "nhwc")
        return known[overrides]

    return open_


def scene(height: int, width: int, seed: int = 3) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), (height, width), seed % 6).image


@pytest.mark.parametrize("name", [_default(name) for name in RECIPES])
def test_graphs_equal_torch_on_every_size_and_batch(
    opened: Callable[..., ExportSource], name: str, tmp_path: Path
) -> None:
    source = opened(*RECIPES[name])
    write_graphs(source, source.networks, tmp_path, "fp32")
    found = check_parity(source, tmp_path, drawn_cases(len(CLASSES)))
    assert set(found) == set(GRAPHS)
    for graph in ("refine", "label", "segmenter"):
        labels_equal = found[graph].labels_equal
        assert labels_equal is not None and labels_equal >= 0.999
    assert found["segmenter"].change_error is None
    for graph in ("refine", "label"):  # a cell or two of the smallest grid at most
        change_error = found[graph].change_error
        assert change_error is not None and change_error < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (7, 3), (33, 8), (200, 17)])
@pytest.mark.parametrize("name", ["corners", "reference"])
def test_tiny_and_narrow_images_have_the_labels_of_torch(
    opened: Callable[..., ExportSource], name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    source = opened(*RECIPES[name])
    write_graphs(source, source.networks, tmp_path, "fp32")
    image = np.random.default_rng(5).integers(0, 256, (1, *size, 3)).astype(np.uint8)
    case = ParityCase(image, ((0, 2),))
    expected = reference_outputs(source, case)
    for graph in ("label", "segmenter"):
        opened_graph = open_graph(tmp_path / f"{graph}.onnx", backend="onnxruntime", device="cpu")
        outputs = opened_graph.run(feeds(source, case, graph, expected))
        # On a handful of pixels one tie more is a per cent: scores decide.
        assert compare(outputs, expected[graph]).max_error["scores"] < 1e-4
        assert outputs["label"].shape == (1, *size)


def test_batch_companions_do_not_change_a_label(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    graph = open_graph(tmp_path / "label.onnx", backend="onnxruntime", device="cpu")
    images = np.stack([scene(80, 97, seed) for seed in range(3)])
    present = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], np.float32)
    together = graph.run({"image": images, "present": present})
    for index in range(3):
        one = slice(index, index + 1)
        alone = graph.run({"image": images[one], "present": present[one]})
        np.testing.assert_array_equal(together["label"][one], alone["label"])
        np.testing.assert_allclose(together["scores"][one], alone["scores"], atol=1e-5)
        np.testing.assert_allclose(together["change"][one], alone["change"], atol=0.01)
    assert not together["label"][2].any()  # nothing is there
    assert (together["change"][:2] > 0).all() and together["change"][2] == 0
    np.testing.assert_array_equal(together["used_classes"], present)


def test_without_named_classes_the_classifier_decides(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    graph = open_graph(tmp_path / "label.onnx", backend="onnxruntime", device="cpu")
    image = scene(80, 97)
    inputs = {"image": image[None]}
    found = source.predictor.find_classes(image)
    by_default = graph.run(inputs)
    assert np.flatnonzero(by_default["used_classes"][0]).tolist() == found
    unknown = np.full((1, len(CLASSES)), -1, np.float32)
    np.testing.assert_array_equal(
        graph.run(inputs | {"present": unknown})["label"], by_default["label"]
    )
    mixed = unknown.copy()
    mixed[0, 0] = 1 - float(0 in found)  # one class is told, against the classifier
    used = graph.run(inputs | {"present": mixed})["used_classes"][0]
    assert set(np.flatnonzero(used)) == set(found) ^ {0}


def test_a_number_between_0_and_1_is_a_threshold(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    inputs = {"image": scene(80, 97)[None]}
    with closing(
        open_graph(tmp_path / "cam.onnx", backend="onnxruntime", device="cpu")
    ) as classifier:
        probabilities = classifier.run(inputs, ["probabilities"])["probabilities"]
    graph = open_graph(tmp_path / "label.onnx", backend="onnxruntime", device="cpu")
    for factor in (0.99, 1.01):
        feeds = inputs | {"present": probabilities * np.float32(factor)}
        used = graph.run(feeds, ["used_classes"])["used_classes"]
        assert used.all() if factor < 1 else not used.any()
    mixed = probabilities * np.array([[0.99, 1.01, 0]], np.float32)
    used = graph.run(inputs | {"present": mixed}, ["used_classes"])["used_classes"]
    assert used.tolist() == [[1, 0, 0]]


def test_images_may_come_as_planes(opened: Callable[..., ExportSource], tmp_path: Path) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path / "nhwc", "fp32")
    planes = open_source(source.predictor.folder, ("segmenter",), "nchw")
    write_graphs(planes, planes.networks, tmp_path / "nchw", "fp32")
    image = scene(64, 81)[None]
    labels = []
    for layout, pixels in (("nhwc", image), ("nchw", image.transpose(0, 3, 1, 2).copy())):
        path = tmp_path / layout / "segmenter.onnx"
        graph = open_graph(path, backend="onnxruntime", device="cpu")
        labels.append(graph.run({"image": pixels})["label"])
    np.testing.assert_array_equal(*labels)


def test_graphs_are_valid_named_and_always_the_same(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    with traced_afresh():
        again = open_source(source.predictor.folder, None, "nhwc")
    for folder, made in (("one", source), ("two", again)):
        write_graphs(made, made.networks, tmp_path / folder, "fp32")
    for name in GRAPHS:
        path = tmp_path / "one" / f"{name}.onnx"
        assert path.read_bytes() == (tmp_path / "two" / f"{name}.onnx").read_bytes()
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
        assert model.ir_version == IR_VERSION
        for value in (*model.graph.input, *model.graph.output):
            axes = value.type.tensor_type.shape.dim
            assert all(axis.dim_param or axis.dim_value for axis in axes), value.name
        properties = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(properties["wsss.classes"]) == ["background", *CLASSES]
        assert set(json.loads(properties["wsss.normalisation"])) == set(GRAPHS[name])
        assert len(json.loads(properties["wsss.palette"])) == len(CLASSES) + 1
        assert properties["wsss.graph"] == name and properties["wsss.method"] == "affinitynet"
        text = path.read_bytes()
        assert b"site-packages" not in text and b"/work" not in text  # no trace of this machine


def test_weights_lie_in_a_file_once(opened: Callable[..., ExportSource], tmp_path: Path) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    weights = sum(t.ByteSize() for t in source.networks["cam"].model.graph.initializer)
    assert (tmp_path / "cam.onnx").stat().st_size < weights + 400_000


@pytest.mark.parametrize("graph", ["cam", "affinity", "label", "segmenter"])
def test_a_graph_that_parts_from_torch_is_told_by_its_first_node(
    opened: Callable[..., ExportSource], tmp_path: Path, graph: str
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    path = tmp_path / f"{graph}.onnx"
    model = onnx.load(path)
    stage = {"label": "affinity"}.get(graph, graph)
    nodes = [n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith(stage)]
    victim = nodes[2]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}[victim.input[1]]
    # Norms behind the layer would undo a mere factor.
    values = np.ascontiguousarray(onnx.numpy_helper.to_array(weights)[::-1])
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=f"graph '{graph}' differs from torch on") as error:
        check_parity(source, tmp_path, drawn_cases(len(CLASSES)))
    assert f"they part at node '{victim.name}' (Conv)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_walk_is_told_by_its_result(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    path = tmp_path / "refine.onnx"
    model = onnx.load(path)
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    (trips,) = [t for t in model.graph.initializer if t.name == loop.input[0]]
    trips.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.int64), trips.name))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="whose output 'refine/walked'"):
        check_parity(source, tmp_path, drawn_cases(len(CLASSES)))


def test_a_wrong_change_is_told(opened: Callable[..., ExportSource], tmp_path: Path) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    path = tmp_path / "refine.onnx"
    model = onnx.load(path)
    mean = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    (flat,) = [node for node in model.graph.node if mean.input[0] in node.output]
    (cast,) = [node for node in model.graph.node if flat.input[0] in node.output]
    (negation,) = [node for node in model.graph.node if cast.input[0] in node.output]
    assert negation.op_type == "Not"
    cast.input[0] = negation.input[0]  # the share of cells that stay
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match=r"`change` is (1|0\.\d+) off, allowed 0\.00\d"):
        check_parity(source, tmp_path, drawn_cases(len(CLASSES)))


def test_a_graph_that_agrees_has_no_first_difference(
    opened: Callable[..., ExportSource], tmp_path: Path
) -> None:
    source = opened()
    write_graphs(source, source.networks, tmp_path, "fp32")
    case = drawn_cases(len(CLASSES))[1]
    outputs = reference_outputs(source, case)
    for name in GRAPHS:
        inputs = feeds(source, case, name, outputs)
        told = first_difference(source, tmp_path / f"{name}.onnx", case, inputs, 1e-4)
        assert told.startswith("each image by itself agrees")


def test_only_trained_networks_are_exported(tmp_path: Path) -> None:
    run = write_untrained_run(tmp_path / "run", untrained_recipe())
    (run / "affinity" / "weights.safetensors").unlink()
    assert open_source(run, None, "nhwc").graphs == ("cam", "segmenter")
    for name in ("label", "refine"):
        with pytest.raises(ArtifactError, match="has no trained 'affinity' network"):
            open_source(run, (name,), "nhwc")
    with pytest.raises(ConfigError, match="unknown graph 'labels': choose of cam, affinity"):
        open_source(run, ("labels",), "nhwc")


@pytest.mark.parametrize(
    ("scale", "stride", "align"),
    all_pairs(
        [0.1, 0.5, 0.75, 1.0, 1.25, 4 / 3, 1.5, 2.0], [1, 4, 8, 16], ["reference", "corners"]
    ),
)
def test_sizes_are_rounded_as_python_rounds_them(align: str, stride: int, scale: float) -> None:
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    graph = Builder(nodes, constants, "")
    names = [
        add_scaled_size(graph, "size", scale, align, stride),
        add_grid_size(graph, "size", stride, align),
    ]
    info = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            needed_nodes(nodes, names),
            "sizes",
            [info("size", onnx.TensorProto.INT64, [2])],
            [info(name, onnx.TensorProto.INT64, [2]) for name in names if name != "size"],
            constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for height in range(1, 400, 7):
        size = (height, 800 - height)
        feed = {"size": np.array(size, np.int64)}
        found = dict(zip([n for n in names if n != "size"], session.run(None, feed), strict=True))
        expected = [scaled_size(size, scale, align, stride), grid_size(size, stride, align)]
        for name, values in zip(names, expected, strict=True):
            assert tuple(found.get(name, feed["size"])) == values


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenetv2", "resnet50", "vgg16", "resnet38"])
def test_every_backbone_is_traced(backbone: str) -> None:
    from wsss.export.graphs.trace import network_graph
    from wsss.training.engine.networks import NetworkSpec
    from wsss.training.methods.shared.classifier import CamClassifier

    stride = 16 if backbone == "mobilenetv2" else 8
    network = NetworkSpec(CamClassifier, backbone, stride, {"num_classes": 3}).build().eval()
    graph = network_graph("cam", network)
    pixels = 255 * torch.rand(2, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    normalised = network.backbone.normaliser(pixels)  # what the traced part takes
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    activation, logits = session.run(None, {"pixels": normalised.numpy()})
    with torch.no_grad():
        for found, expected in ((activation, network.cam(pixels)), (logits, network(pixels))):
            scale = float(expected.abs().max())
            np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
