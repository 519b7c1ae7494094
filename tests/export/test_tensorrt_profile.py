"""Profiles of sizes and lines for trtexec: read from ONNX files, without TensorRT."""

import shlex
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pytest import fixture, mark, raises

from wsss.errors import ArtifactError, ConfigError, DataError, WsssError
from wsss.export.graphs.walk import walk_model
from wsss.export.tensorrt import EngineSettings, check_profile, profile_from_sizes, trtexec_command

IMAGE = (["batch", 3, "height", "width"], TensorProto.UINT8)
CAM = (["batch", 20, "cam_height", "cam_width"], TensorProto.FLOAT)
SIZES = {"batch": [1, 4, 8], "height": [256, 320, 512], "width": [256, 384, 512]}
SHAPES = ((1, 3, 256, 256), (4, 3, 320, 384), (8, 3, 512, 512))


def write_graph(path, inputs, default=None):
    """A graph that adds up its inputs; `default` is the name of one with a default of shape (1)."""
    declared = [helper.make_tensor_value_info(n, kind, axes) for n, (axes, kind) in inputs.items()]
    nodes = [helper.make_node("Identity", [next(iter(inputs))], ["out"])]
    kind = declared[0].type.tensor_type.elem_type
    output = helper.make_tensor_value_info("out", kind, None)
    constants = []
    if default:
        declared.append(helper.make_tensor_value_info(default, TensorProto.FLOAT, ["n"]))
        constants.append(numpy_helper.from_array(np.zeros(1, np.float32), default))
    graph = helper.make_graph(nodes, "g", declared, [output], constants)
    onnx.save(helper.make_model(graph), path)
    return path


@fixture
def label(tmp_path):
    return write_graph(tmp_path / "label.onnx", {"image": IMAGE}, default="present")


@fixture
def refine(tmp_path):
    return write_graph(tmp_path / "refine.onnx", {"image": IMAGE, "cam": CAM})


def test_image_sizes_become_shapes_and_defaults_get_none(label):
    assert profile_from_sizes(label, SIZES) == {"image": SHAPES}


def test_other_axes_come_by_name(refine):
    axes = {"cam_height": (64, 80, 128), "cam_width": (64, 96, 128), "unused": (1, 1, 1)}
    assert profile_from_sizes(refine, SIZES, axes) == {
        "image": SHAPES,
        "cam": ((1, 20, 64, 64), (4, 20, 80, 96), (8, 20, 128, 128)),
    }


def test_fixed_inputs_need_no_profile(tmp_path):
    fixed = write_graph(tmp_path / "fixed.onnx", {"image": ([1, 3, 8, 8], TensorProto.FLOAT)})
    assert profile_from_sizes(fixed, SIZES) == {}
    check_profile(fixed, {})


def test_the_walk_takes_its_axes_by_name(tmp_path):
    path = tmp_path / "walk.onnx"
    onnx.save(walk_model(), path)
    profile = profile_from_sizes(
        path,
        {"batch": [1, 1, 2], "height": [8, 80, 128], "width": [8, 80, 128]},
        {"maps": (1, 3, 21)},
    )
    assert profile["scores"] == ((1, 1, 8, 8), (1, 3, 80, 80), (2, 21, 128, 128))
    assert profile["affinity"][1] == (1, 34, 80, 80)


@mark.parametrize(
    ("sizes", "axes", "message"),
    [
        ({}, None, "no sizes for `batch`, `height`, `width`"),
        (
            SIZES,
            None,
            r"input `cam` \(batch, 20, cam_height, cam_width\): no sizes for `cam_height`",
        ),
        (
            {**SIZES, "depth": [1, 1, 1]},
            None,
            "unknown size `depth`: choose of batch, height, width",
        ),
        (
            {**SIZES, "batch": [1, 8, 4]},
            None,
            r"axis `batch` must be min <= best <= max, found \(1, 8",
        ),
        ({**SIZES, "batch": [0, 1, 4]}, None, "axis `batch` needs three whole numbers from 1"),
        ({**SIZES, "batch": [1, 4]}, None, r"needs three whole numbers from 1, found \(1, 4\)"),
        ({**SIZES, "batch": [1, 2.5, 4]}, None, r"three whole numbers from 1, found \(1, 2.5, 4\)"),
    ],
)
def test_sizes_that_do_not_do(refine, sizes, axes, message):
    with raises(ConfigError, match=message) as caught:
        profile_from_sizes(refine, sizes, axes)
    assert str(caught.value).startswith("sizes for 'refine.onnx': ")
    assert "\n" not in str(caught.value)


def test_an_axis_without_a_name_is_told(tmp_path):
    path = write_graph(tmp_path / "g.onnx", {"x": ([None, 3], TensorProto.FLOAT)})
    with raises(ConfigError, match="no sizes for an axis without a name"):
        profile_from_sizes(path, SIZES)
    check_profile(path, {"x": ((1, 3), (2, 3), (2, 3))})


@mark.parametrize(
    ("profile", "message"),
    [
        ({}, r"input `image` \(batch, 3, height, width\) has dynamic axes and no shapes"),
        ({"image": SHAPES, "photo": SHAPES}, "unknown input `photo`: the graph takes image"),
        ({"image": SHAPES, "present": ((1,), (1,), (1,))}, "`present` has a default, which is a"),
        ({"image": SHAPES[:2]}, "input `image` needs three shapes of 4 axes"),
        ({"image": ((1, 3, 8), *SHAPES[1:])}, "input `image` needs three shapes of 4 axes"),
        (
            {"image": (SHAPES[2], SHAPES[1], SHAPES[0])},
            "axis 0 of `image` must be min <= best <= max",
        ),
        (
            {"image": ((0, 3, 8, 8), *SHAPES[1:])},
            "axis 0 of `image` needs three whole numbers from 1",
        ),
        (
            {"image": ((1, 1, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))},
            r"axis 1 of `image` is fixed at 3, fo",
        ),
    ],
)
def test_profiles_that_do_not_fit_the_graph(label, profile, message):
    with raises(ConfigError, match=message):
        check_profile(label, profile)


def test_all_faults_of_a_profile_are_told_at_once(refine):
    with raises(ConfigError) as caught:
        check_profile(refine, {"photo": SHAPES, "image": SHAPES})
    assert str(caught.value) == (
        "profile of 'refine.onnx': unknown input `photo`: the graph takes image, cam; "
        "input `cam` (batch, 20, cam_height, cam_width) has dynamic axes and no shapes"
    )


def test_one_named_axis_has_one_range(refine):
    other = ((2, 20, 8, 8), (2, 20, 8, 8), (2, 20, 8, 8))
    with raises(
        ConfigError, match=r"axis `batch` is \(1, 4, 8\) in `image` and \(2, 2, 2\) in `cam`"
    ):
        check_profile(refine, {"image": SHAPES, "cam": other})


@mark.parametrize("content", [b"no protobuf", b""])
def test_files_that_are_no_graphs(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with raises(ArtifactError, match="is not an ONNX file"):
        check_profile(path, {})
    with raises(DataError, match="No such file"):
        check_profile(tmp_path / "absent.onnx", {})


def test_line_with_defaults(label, monkeypatch):
    monkeypatch.chdir(label.parent)
    command = trtexec_command(Path("label.onnx"), Path("label.plan"), {"image": SHAPES})
    assert shlex.join(command) == (
        "trtexec --onnx=label.onnx --saveEngine=label.plan --stronglyTyped "
        "--minShapes=image:1x3x256x256 --optShapes=image:4x3x320x384 "
        "--maxShapes=image:8x3x512x512 --memPoolSize=workspace:2048 "
        "--builderOptimizationLevel=3 --noTF32"
    )


def test_line_with_everything(refine, monkeypatch):
    monkeypatch.chdir(refine.parent)
    settings = EngineSettings(
        workspace_bytes=(4 << 30) + 1,
        timing_cache=Path("kernels.cache"),
        version_compatible=True,
        hardware_compatible=True,
        builder_optimization_level=5,
        tf32=True,
    )
    cam = tuple((batch, 20, 80, 80) for batch in (1, 4, 8))
    command = trtexec_command(
        Path("refine.onnx"), Path("out/refine.plan"), {"image": SHAPES, "cam": cam}, settings
    )
    assert command == [
        "trtexec",
        "--onnx=refine.onnx",
        "--saveEngine=out/refine.plan",
        "--stronglyTyped",
        "--minShapes=image:1x3x256x256,cam:1x20x80x80",
        "--optShapes=image:4x3x320x384,cam:4x20x80x80",
        "--maxShapes=image:8x3x512x512,cam:8x20x80x80",
        "--memPoolSize=workspace:4294967297B",
        "--builderOptimizationLevel=5",
        "--timingCacheFile=kernels.cache",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
    ]


def test_line_of_a_graph_without_dynamic_axes_has_no_shapes(tmp_path):
    fixed = write_graph(tmp_path / "fixed.onnx", {"x": ([1], TensorProto.FLOAT)})
    assert not [part for part in trtexec_command(fixed, tmp_path / "p", {}) if "Shapes" in part]


def test_line_refuses_what_it_cannot_express(tmp_path):
    path = write_graph(tmp_path / "g.onnx", {"a,b": (["n"], TensorProto.FLOAT)})
    with raises(ConfigError, match="trtexec takes no comma or quote in a name"):
        trtexec_command(path, tmp_path / "p", {"a,b": ((1,), (1,), (1,))})


def test_settings_out_of_range_are_told_at_once():
    with raises(WsssError, match=r"`workspace_bytes` is 5, .*; `builder_optimization_level` is 9"):
        EngineSettings(workspace_bytes=5, builder_optimization_level=9)
