"""A model repository as files: what is written, refused, replaced and added; no server needed."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import wsss
from untrained_run import CLASSES

from wsss.errors import ArtifactError, ConfigError, MissingDependencyError, WsssError
from wsss.export.graphs.subgraph import limit_sizes
from wsss.export.triton import RepositoryOptions, check_repository, write_repository
from wsss.export.triton import repository as repository_module
from wsss.export.triton.configs import CONFIG, SHRINKAGE, config_text, model_config_pb2, read_config
from wsss.export.triton.options import options_from_settings
from wsss.export.triton.repository import read_contents, render_configs
from wsss.export.triton.skeleton import demo_bundle, graph_entry, write_skeleton
from wsss.runtime.bundle.open import MANIFEST, EngineEntry, open_bundle, seal

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
GRAPHS = ("cam", "affinity", "refine", "label", "segmenter")
SKELETON = Path(__file__).resolve().parents[2] / "triton_models"


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def other_bundle(bundle: Path, target: Path, **changes: Any) -> Path:
    """The same graphs under another manifest, and so another digest."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / MANIFEST).read_text())
    del manifest["digest"]
    (target / MANIFEST).write_bytes(seal(manifest | changes))
    return target


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may spoil."""
    return shutil.copytree(repository, tmp_path / "copied")


def test_a_repository_says_which_bundle_it_serves(bundle: Path, repository: Path) -> None:
    opened, configs = open_bundle(bundle), check_repository(repository)
    assert list(configs) == [
        "affinity",
        "cam",
        "decode",
        "label",
        "label_encoded",
        "label_ensemble",
        "refine",
        "relay",
        "segmenter",
    ]
    for config in configs.values():
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert parameters["wsss.digest"] == opened.digest
        assert json.loads(parameters["wsss.digests"]) == {"1": opened.digest}
        assert json.loads(parameters["wsss.classes"]) == list(CLASSES)
        assert json.loads(parameters["wsss.palette"])[1] == [128, 0, 0]
        assert parameters["wsss.layout"] == "nhwc"
    assert read_contents(repository).versions == {1: opened.digest}
    for name in ("label", "refine"):  # required for the server, optional in the bundle
        graph = onnx.load(repository / name / "1" / "model.onnx").graph
        names = {tensor.name for tensor in graph.initializer}
        assert "present" in {value.name for value in graph.input} and "present" not in names
    for name in ("cam", "affinity", "segmenter"):
        served, own = (
            onnx.load(path)
            for path in (repository / name / "1" / "model.onnx", bundle / f"{name}.onnx")
        )
        limit_sizes(own, RepositoryOptions.max_pixels)
        assert served == own


def test_texts_parse_back_and_do_not_depend_on_chance(bundle: Path, tmp_path: Path) -> None:
    options = RepositoryOptions(decode=True, warmup=((64, 80),), priority_levels=3)
    for name in ("one", "two"):
        write_repository(bundle, tmp_path / name, options)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    rendered = render_configs(open_bundle(bundle), options, {1: open_bundle(bundle).digest})
    for name, config in rendered.items():
        assert read_config(tmp_path / "one" / name / CONFIG) == config
    folder = tmp_path / "one"
    assert (folder.stat().st_mode & 0o777, (folder / "cam" / CONFIG).stat().st_mode & 0o444) == (
        0o755,
        0o444,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_options_reach_the_configurations(bundle: Path) -> None:
    options = options_from_settings(
        [
            "device=gpu",
            "gpus=0,1",
            "instances=2",
            "max_batch_size=16",
            "max_queue_delay=500",
            "preferred_batch_sizes=4,16",
            "max_queue_size=9",
            "default_timeout=70000",
            "priority_levels=3",
            "warmup=64x80",
        ]
    )
    kinds = model_config_pb2().ModelInstanceGroup
    configs = render_configs(open_bundle(bundle), options, {1: "0"})
    cam, group = configs["cam"], configs["cam"].instance_group[0]
    assert (group.kind, list(group.gpus), group.count) == (kinds.KIND_GPU, [0, 1], 2)
    assert cam.max_batch_size == configs["label_ensemble"].max_batch_size == 16
    batching = cam.dynamic_batching
    assert batching.max_queue_delay_microseconds == 500
    assert list(batching.preferred_batch_size) == [4, 16]
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 70000)
    assert list(cam.model_warmup[0].inputs["image"].dims) == [64, 80, 3]
    assert configs["relay"].instance_group[0].kind == kinds.KIND_CPU
    assert not configs["label_ensemble"].instance_group  # servers refuse it there
    shrinking = render_configs(open_bundle(bundle), RepositoryOptions(shrink_memory=True), {1: "0"})
    for each in (*GRAPHS, "label_ensemble"):
        is_graph = each != "label_ensemble"
        assert (shrinking[each].parameters[SHRINKAGE].string_value == "cpu:0") is is_graph


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("instances=0", "instances is 0, must be in 1 to 64"),
        ("instances=many", "expected a whole number"),
        ("device=tpu", "device is 'tpu', must be cpu or gpu"),
        ("preferred_batch_sizes=4,9", r"has 9, must be in 1 to max_batch_size \(8\)"),
        ("gpus=0", "gpus are given but device is cpu"),
        ("warmup=0x10", "warmup is 0x10"),
        ("warmup=10", "expected HEIGHTxWIDTH"),
        ("backends=cam", "expected MODEL:BACKEND"),
        ("backends=cam:openvino", "must be onnxruntime or tensorrt"),
        ("decode=yes", "expected true or false"),
        ("shrink_memory=1", "expected true or false"),
        ("max_pixels=0", "max_pixels is 0, must be in 1 to"),
        ("threads=2", "unknown Triton option 'threads=2': give KEY=VALUE"),
        ("decode", "unknown Triton option 'decode'"),
    ],
)
def test_impossible_options_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_from_settings([setting])


def test_all_faults_of_the_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"instances is 0.*max_queue_size is -1"):
        RepositoryOptions(instances=0, max_queue_size=-1)


def test_plans_are_served_by_compute_capability(bundle: Path, tmp_path: Path) -> None:
    """Without a plan that runs: there is no GPU here, so only files and fields are checked."""
    plans = []
    for capability in ("8.0", "9.0"):
        file = f"label.sm{capability.replace('.', '')}.trt11.4.0.plan"
        plans.append(EngineEntry(file, "label", "11.4.0", capability, "some GPU", False, False))
    with_plans = replace(open_bundle(bundle), engines=tuple(plans))
    options = RepositoryOptions(backends={"label": "tensorrt"})
    options.check_against(with_plans)
    with pytest.raises(ConfigError, match="names 'walk', which the bundle lacks: it has affinity"):
        RepositoryOptions(backends={"walk": "tensorrt"}).check_against(with_plans)
    config = render_configs(with_plans, options, {1: "0"})["label"]
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.0": "model.sm80.plan", "9.0": "model.sm90.plan"}
    assert config.instance_group[0].kind == model_config_pb2().ModelInstanceGroup.KIND_GPU
    with pytest.raises(ConfigError, match="no TensorRT plan of 'label': build it by"):
        write_repository(bundle, tmp_path / "models", options)
    twice = replace(with_plans, engines=(*plans, replace(plans[0], file="other.plan")))
    with pytest.raises(ConfigError, match=r"several plans of 'label' for compute capability 8\.0"):
        options.check_against(twice)
    with pytest.raises(ConfigError, match="max_batch_size is 9, the plans take up to 8"):
        RepositoryOptions(backends={"label": "tensorrt"}, max_batch_size=9).check_against(
            with_plans
        )
    assert not list(tmp_path.iterdir())


def test_nothing_of_others_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="is a file"):
            write_repository(bundle, tmp_path / "file", overwrite=overwrite)
        with pytest.raises(ArtifactError, match="no Triton repository of wsss"):
            write_repository(bundle, tmp_path / "folder", overwrite=overwrite)
    folder = tmp_path / "ours"
    write_repository(bundle, folder)
    with pytest.raises(ArtifactError, match=r"`overwrite` it, or add .* `version` 2"):
        write_repository(bundle, folder)
    write_repository(bundle, folder, RepositoryOptions(decode=True), version=5, overwrite=True)
    assert (folder / "decode" / "5" / "model.py").exists() and list(
        read_contents(folder).versions
    ) == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "ours"]


def test_a_version_is_added_and_ensembles_follow_it(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    first = write_repository(bundle, folder)
    second = other_bundle(bundle, tmp_path / "second", name="second")
    added = write_repository(second, folder, version=2)
    assert read_contents(folder).versions == {1: first.digest, 2: added.digest}
    configs = check_repository(folder)
    steps = configs["label_ensemble"].ensemble_scheduling.step
    assert {step.model_version for step in steps} == {2}
    assert configs["cam"].version_policy.latest.num_versions == 2
    for name in configs:
        assert sorted(path.name for path in (folder / name).iterdir()) == ["1", "2", CONFIG]
    with pytest.raises(ArtifactError, match=r"has version 2: .* `version` 3"):
        write_repository(second, folder, version=2)
    before = content(folder)
    with pytest.raises(ArtifactError, match=r"differ in models \(decode, label_encoded\)"):
        write_repository(second, folder, RepositoryOptions(decode=True), version=3)
    renamed = other_bundle(bundle, tmp_path / "renamed", classes=["disc", "bar", "square"])
    with pytest.raises(ArtifactError, match="of other classes, tensors or files"):
        write_repository(renamed, folder, version=3)
    assert content(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "renamed", "second"]


def test_a_version_that_cannot_be_added_leaves_everything_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    write_repository(bundle, folder)
    before, real = content(folder), repository_module.os.replace

    def fail(source: Path, target: Path) -> None:
        if target.parent.name == "label_ensemble" and source.name == CONFIG:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(repository_module.os, "replace", fail)
    with pytest.raises(ArtifactError, match="No space left on device: free space"):
        write_repository(bundle, folder, version=2)
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def edited(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    config = read_config(folder / name / CONFIG)
    change(config)
    (folder / name / CONFIG).write_text(config_text(config))


def set_type(name: str, place: int) -> Callable[[Path], None]:
    def change(config: Any) -> None:
        config.input[place].data_type = model_config_pb2().TYPE_INT32

    return lambda folder: edited(folder, name, change)


def expose_cam(config: Any) -> None:
    config.output.add(name="cam", data_type=model_config_pb2().TYPE_FP32, dims=[3, -1, -1])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model": (lambda f: shutil.rmtree(f / "refine"), "step 'refine', which is no model"),
    "graph": (lambda f: (f / "cam/1/model.onnx").unlink(), "'cam' lacks '1/model.onnx'"),
    "broken graph": (
        lambda f: (f / "cam/1/model.onnx").write_bytes(b"\xff\xff"),
        "'model.onnx' is no ONNX graph",
    ),
    "python": (lambda f: (f / "decode/1/model.py").unlink(), "'decode' lacks '1/model.py'"),
    "version": (lambda f: shutil.rmtree(f / "label_ensemble/1"), "has no version folder"),
    "step version": (
        lambda f: edited(
            f,
            "label_ensemble",
            lambda c: setattr(c.ensemble_scheduling.step[0], "model_version", 4),
        ),
        "wants version 4 of 'cam'",
    ),
    "config": (lambda f: (f / "cam" / CONFIG).unlink(), "cannot read"),
    "spelling": (
        lambda f: (f / "cam" / CONFIG).write_text("max_batch: 3"),
        r"no model configuration: 1:1 : .*max_batch",
    ),
    "name": (lambda f: (f / "cam").rename(f / "cams"), "folder 'cams' holds the model 'cam'"),
    "type": (set_type("cam", 0), "input 'image' is TYPE_INT32, the graph has TYPE_UINT8"),
    "ensemble type": (
        set_type("label_ensemble", 0),
        "step 'cam': input 'image' is TYPE_UINT8, its source TYPE_INT32",
    ),
    "dims": (
        lambda f: edited(f, "cam", lambda c: c.output[0].dims.append(1)),
        "output 'cam' is .* with the batch, the graph has",
    ),
    "optional": (
        lambda f: edited(f, "label", lambda c: setattr(c.input[1], "optional", True)),
        "input 'present' is optional, which the backend refuses with batches",
    ),
    "exposed": (
        lambda f: edited(f, "label_ensemble", expose_cam),
        "'cam' is an output and read by a step",
    ),
    "batch": (
        lambda f: edited(f, "affinity", lambda c: setattr(c, "max_batch_size", 2)),
        "takes larger batches than its step 'affinity'",
    ),
    "side by side": (
        lambda f: edited(
            f,
            "label_ensemble",
            lambda c: c.ensemble_scheduling.step[2].input_map.update({"image": "image"}),
        ),
        "'cam' and 'affinity' run side by side",
    ),
    "unread": (
        lambda f: edited(
            f,
            "label_ensemble",
            lambda c: c.ensemble_scheduling.step[1].input_map.pop("present"),
        ),
        "nobody reads the input 'present'",
    ),
    "source": (
        lambda f: edited(
            f,
            "label_ensemble",
            lambda c: c.ensemble_scheduling.step[3].input_map.pop("affinity"),
        ),
        "step 'refine': input 'affinity' has no source",
    ),
    "maker": (
        lambda f: edited(
            f,
            "label_ensemble",
            lambda c: c.ensemble_scheduling.step[2].output_map.pop("affinity"),
        ),
        "nobody makes 'affinity'",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found_before_a_server_sees_them(copied: Path, name: str) -> None:
    spoil, message = FAULTS[name]
    check_repository(copied)
    spoil(copied)
    with pytest.raises(ArtifactError, match=message):
        check_repository(copied)


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "is no folder"), (tmp_path, "holds no model")):
        with pytest.raises(ArtifactError, match=message):
            check_repository(folder)


def test_the_committed_skeleton_is_what_the_code_renders(bundle: Path, tmp_path: Path) -> None:
    write_skeleton(tmp_path)
    committed = {path: text for path, text in content(SKELETON).items() if path != "README.md"}
    assert committed == content(tmp_path), "run `make triton-models`"
    opened = open_bundle(bundle)
    pairs = opened.graphs["affinity"].outputs[0].shape[1]
    assert isinstance(pairs, int)
    for name, entry in opened.graphs.items():
        assert graph_entry(name, "nhwc", len(CLASSES), pairs) == entry
    assert demo_bundle().classes == CLASSES


def test_without_tritonclient_the_package_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wsss\[triton\]'"):
        write_repository(bundle, tmp_path / "models")
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_labels_cannot_decode(bundle: Path) -> None:
    opened = open_bundle(bundle)
    alone = replace(opened, graphs={"cam": opened.graphs["cam"]})
    with pytest.raises(WsssError, match="makes no labels"):
        render_configs(alone, RepositoryOptions(decode=True), {1: "0"})
    assert list(render_configs(alone, RepositoryOptions(), {1: "0"})) == ["cam"]
    only = replace(opened, graphs={"segmenter": opened.graphs["segmenter"]})
    configs = render_configs(only, RepositoryOptions(decode=True), {1: "0"})
    assert list(configs) == ["segmenter", "decode", "label_encoded"]


def test_the_command_writes_a_repository(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    arguments = ("export", bundle, "--triton", folder)
    told = wsss(*arguments, "--triton-set", "decode=true", "--json").succeeded()
    answer = json.loads(told.out)["triton"]
    assert answer["repository"] == str(folder) and answer["version"] == 1
    assert set(answer["models"]) == set(check_repository(folder))
    assert "--triton-version 2" in wsss(*arguments).line()
    lines = wsss(*arguments, "--triton-version", "2", "--triton-set", "decode=true").succeeded()
    assert lines.out.splitlines()[-1] == f"Triton repository: {folder}"
    assert "instances is 0" in wsss(*arguments, "--overwrite", "--triton-set", "instances=0").line()
    assert "leave --triton out" in wsss(*arguments, "--overwrite", "--dry-run").line()
    assert "need --triton REPO" in wsss("export", bundle, "--triton-version", "3").line()
