"""A bundle opens as it was written; any other content ends in one line that names the file."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_bundles import (
    ENGINE,
    FILES,
    cam_model,
    content,
    read_manifest,
    spec,
    write_bundle,
    write_manifest,
)

from wsss.errors import ArtifactError
from wsss.runtime.backends.contract import TensorSpec
from wsss.runtime.bundle.manifest import AffinityEntry, ModeEntry
from wsss.runtime.bundle.open import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    EngineEntry,
    file_entry,
    is_bundle,
    open_bundle,
    seal,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def refusal(folder: Path, file: str = MANIFEST) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert str(folder / file) in message and message.isprintable() and len(message) < 1500
    return message


# --- valid ---


def test_everything_is_there(folder: Path) -> None:
    bundle = open_bundle(folder)
    written = content(folder)
    assert bundle.folder == folder
    assert bundle.version == "0.1.0"
    assert bundle.classes == ("dog", "Häuser", "犬")
    assert bundle.palette[1] == (128, 0, 0) and len(bundle.palette) == 4
    assert bundle.sizes == {"batch": (1, 1, 8), "height": (16, 512, 1024), "width": (16, 512, 1024)}
    for name in ("method", "name", "layout", "precision", "opset", "align", "padding", "strides"):
        assert getattr(bundle, name) == written[name]
    assert bundle.modes == {"walk": ModeEntry("label", "walk", False)}
    assert bundle.affinity == AffinityEntry("affinity", "affinity") and bundle.instances == ()
    for name in ("normalisation", "settings", "parity"):
        assert getattr(bundle, name) == written[name]
    assert bundle.digest == read_manifest(folder)["digest"]
    assert bundle.graphs["cam"].inputs == (
        TensorSpec("x", "float32", ("n", 3)),
        TensorSpec("threshold", "float32", (), is_optional=True),
    )


def test_graphs_and_engines_by_name(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.graph_path("cam") == folder / "cam.onnx"
    engine = EngineEntry(ENGINE, "label", "11.4.0", "9.0", "NVIDIA H100", False, False)
    assert bundle.engines_of("label") == (engine,)
    assert bundle.engines_of("cam") == ()
    for method in (bundle.graph_path, bundle.engines_of):
        with pytest.raises(ArtifactError, match="no graph 'segmenter': it has cam, label"):
            method("segmenter")


def test_moved_and_read_only(folder: Path, tmp_path: Path) -> None:
    digest = open_bundle(folder).digest
    moved = Path(shutil.copytree(folder, tmp_path / "other" / "name with spaces é"))
    shutil.rmtree(folder)
    for path in (*moved.iterdir(), moved):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(os.listdir(moved))
    bundle = open_bundle(moved)
    assert bundle.digest == digest and bundle.graph_path("label").is_file()
    assert sorted(os.listdir(moved)) == before
    (tmp_path / "link").symlink_to(moved)
    assert open_bundle(str(tmp_path / "link")).digest == digest
    moved.chmod(0o755)


def test_other_files_are_not_looked_at(folder: Path) -> None:
    (folder / "README.md").write_text("hello")
    (folder / "other.onnx").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.plan")
    open_bundle(folder)


def test_without_engines(folder: Path) -> None:
    changed = read_manifest(folder)
    changed["engines"] = []
    del changed["files"][ENGINE]
    write_manifest(folder, changed)
    assert open_bundle(folder).engines == ()


def test_is_bundle(folder: Path, tmp_path: Path) -> None:
    assert is_bundle(folder)
    assert is_bundle(str(folder))
    for path in (tmp_path, tmp_path / "absent", folder / MANIFEST, "a\0b"):
        assert not is_bundle(path)


def test_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=r"is no bundle, it has no bundle\.json: give a"):
            open_bundle(path)


def test_seal_has_one_form() -> None:
    sealed = seal({"b": {10: 1, 2: (1.5, None)}, "a": "é\n"})
    assert sealed == seal({"a": "é\n", "b": {"2": [1.5, None], "10": 1}, "digest": "old"})
    assert sealed.isascii() and sealed.endswith(b"}\n")
    with pytest.raises(ArtifactError, match=r"bundle\.json cannot hold NaN or infinity"):
        seal({"parity": {"error": float("nan")}})


# --- damage ---


def test_a_flipped_byte_at_every_position_of_the_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    original = path.read_bytes()
    for position in range(len(original)):
        # One bit keeps it text, so that the digest has to tell; the other does not.
        for mask in (0x01, 0x80):
            data = bytearray(original)
            data[position] ^= mask
            path.write_bytes(data)
            refusal(folder)
    path.write_bytes(original)
    open_bundle(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_in_a_file(file: str, folder: Path) -> None:
    original = (folder / file).read_bytes()
    for position in {*range(0, len(original), 97), len(original) - 1}:
        data = bytearray(original)
        data[position] ^= 0x40
        (folder / file).write_bytes(data)
        assert "is damaged, its sha256 is" in refusal(folder, file)


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_truncated_or_longer(file: str, folder: Path) -> None:
    original = (folder / file).read_bytes()
    for data in (original[:-1], original[: len(original) // 2], b"", original + b"\0"):
        (folder / file).write_bytes(data)
        message = refusal(folder, file)
        if file != MANIFEST:
            assert f"has {len(data)} bytes, expected {len(original)}" in message


@pytest.mark.parametrize("file", FILES)
def test_missing(file: str, folder: Path) -> None:
    (folder / file).unlink()
    assert "No such file" in refusal(folder, file)


# --- files that are not the bundle's own ---


def make_symlink(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def make_symlink_inside(path: Path) -> None:
    path.rename(path.with_name("copy"))
    path.symlink_to("copy")


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("absent")


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_hard_link(path: Path) -> None:
    os.link(path, path.parent.parent / "second name")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_symlink, "is a symbolic link, expected the file itself"),
        (make_symlink_inside, "is a symbolic link, expected the file itself"),
        (make_dangling, "is a symbolic link, expected the file itself"),
        (make_loop, "is a symbolic link, expected the file itself"),
        (make_hard_link, "has 2 names (hard links), expected one"),
        (make_pipe, "is not a regular file"),
        (make_folder, "Is a directory"),
    ],
)
@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_no_file_of_its_own(
    file: str, make: Callable[[Path], None], reason: str, folder: Path
) -> None:
    make(folder / file)
    assert reason in refusal(folder, file)


def test_file_entry_takes_what_a_bundle_takes(folder: Path) -> None:
    entry = read_manifest(folder)["files"]["cam.onnx"]
    assert file_entry(folder / "cam.onnx") == entry
    make_hard_link(folder / "cam.onnx")
    with pytest.raises(ArtifactError, match="hard links"):
        file_entry(folder / "cam.onnx")


# --- manifests that say something wrong ---


@pytest.mark.parametrize(
    "name",
    [
        *("../cam.onnx", "/etc/cam.onnx", "sub/cam.onnx", "sub\\cam.onnx", "C:cam.onnx"),
        *("cam.onnx\0", "cam\0.onnx", "cam\n.onnx", "cam.onnx/", ".cam.onnx", "-cam.onnx"),
        *("a..b.onnx", "..", ".", "", ".onnx", "cam.bin", "cam.plan", "cam", "cam.onnx.txt"),
        *("käm.onnx", "\ud800.onnx", "c" * 200 + ".onnx", 5, None, ["cam.onnx"]),
    ],
)
def test_names_of_files(name: Any, folder: Path) -> None:
    changed = read_manifest(folder)
    changed["graphs"]["cam"]["file"] = name
    write_manifest(folder, changed)
    message = refusal(folder)
    assert "as 'graphs.cam.file', expected a plain name that ends in .onnx" in message


def test_names_of_engines(folder: Path) -> None:
    changed = read_manifest(folder)
    changed["engines"][0]["file"] = "../label.plan"
    write_manifest(folder, changed)
    assert "as 'engines[0].file', expected a plain name that ends in .plan" in refusal(folder)


TENSOR = spec("x", "float32", "n", 3)
WRONG: dict[str, list[Any]] = {
    "wsss": ["", 1, None],
    "method": ["", "a\nb", ["affinitynet"]],
    "name": [" ", "a" * 1001, "\x1b[31m"],
    "classes": [
        *([], "dog", None, ["dog"] * 3, [f"c{index}" for index in range(255)]),
        *(["dog", "cat", name] for name in ("", 1, "a\nb", "\udc80", "background")),
    ],
    "palette": [
        *([], None, [[0, 0, 0]] * 3, [[0, 0, 0]] * 5, [[0, 0]] * 4, [[0, 0, 0, 0]] * 4),
        *([[0, 0, value]] * 4 for value in (256, -1, True, 0.5, "0")),
    ],
    "layout": ["NHWC", "", None, ["nhwc"]],
    "precision": ["fp8", 16],
    "opset": [17, 21, 20.0, True, "20"],
    "align": ["center", None],
    "padding": ["", None],
    "strides": [[], {"cam": 0}, {"cam": 8.0}, {"cam": True}],
    "normalisation": [[], None],
    "settings": [[], None, "{}"],
    "sizes": [[1, 2, 3], {}, {"batch": [1, 1, 1]}],
    "sizes.batch": [[0, 1, 1], [2, 1, 3], [1, 3, 2], [1, 1], [1, 1, 65_537], [1, 1.0, 2], None],
    "sizes.depth": [[1, 1, 1]],
    "graphs": [{}, [], {"evil": {}}],
    "graphs.cam": [[], {}, None],
    "graphs.cam.extra": [1],
    "graphs.cam.precision": ["fp64"],
    "graphs.cam.inputs": [[], {}, [1]],
    "graphs.cam.outputs": [[], None],
    "graphs.cam.inputs.0": [[], {**TENSOR, "extra": 1}, {"name": "x"}],
    "graphs.cam.inputs.0.name": ["", 1],
    "graphs.cam.inputs.0.dtype": ["float", "O", "<f4", "bfloat16", None],
    "graphs.cam.inputs.0.shape": [[0], [-1], [True], [None], [2.0], "n", [2**40], [""]],
    "graphs.cam.inputs.0.is_optional": [0, None],
    "modes": [[], None, {"a b": {}}, {"walk": {"graph": "label"}}, {"walk": None}],
    "modes.walk.graph": ["", "../label", 1, None],
    "modes.walk.settings": ["", None],
    "modes.walk.crf": [0, None, "yes"],
    "modes.walk.extra": [1],
    "affinity": [[], "affinity", 1, {"graph": "affinity"}, {"graph": "", "output": "a"}],
    "instances": [None, {}, [1], ["../cam"]],
    "engines": [{}, None, [1]],
    "engines.0.graph": ["cam2", "segmenter", None],
    "engines.0.tensorrt": ["", "11.x", 11, "11.4.0\n"],
    "engines.0.compute_capability": [9.0, "sm90"],
    "engines.0.gpu": ["", None],
    "engines.0.version_compatible": [0],
    "engines.0.hardware_compatible": ["no"],
    "engines.0.plugin": ["evil.so"],
    "files": [[], {}],
    "files.cam.onnx": [None, {}, 3],
    "files.extra.onnx": [{"bytes": 1, "sha256": "0" * 64}],
    "parity": [[], 0.5],
    "extra": [1],
}


def put(changed: Any, key: str, value: Any) -> None:
    """Sets `a.b.0.c`; the names in `files` contain a point themselves."""
    *path, last = key.split(".", 1 if key.startswith("files.") else -1)
    for part in path:
        changed = changed[int(part) if part.isdigit() else part]
    changed[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize("key", WRONG)
def test_each_field_wrong(key: str, folder: Path) -> None:
    for value in WRONG[key]:
        changed = content(folder)
        put(changed, key, value)
        write_manifest(folder, changed)
        message = refusal(folder)
        assert "expected" in message and key.split(".")[0] in message


def test_each_field_missing(folder: Path) -> None:
    for key in content(folder):
        changed = content(folder)
        del changed[key]
        write_manifest(folder, changed)
        message = refusal(folder)
        assert f"lacks '{key}', expected" in message or "schema None, expected 1 to 2" in message


def test_unknown_keys_are_quoted(folder: Path) -> None:
    write_manifest(folder, content(folder) | {"a\nb\x1b[31m": 1})
    assert r"has the unknown key 'a\nb\x1b[31m', expected schema, wsss" in refusal(folder)


def test_large_values_are_quoted_in_part(folder: Path) -> None:
    """Found by `tests/test_fuzzed_models.py`."""
    changed = content(folder)
    changed["graphs"] = [{**content(folder), "a": [content(folder)] * 5}] * 5
    write_manifest(folder, changed)
    assert len(refusal(folder)) < 1000


@pytest.mark.parametrize("bad", [-1, 0, 1.5, "123", 2**31, True])
def test_wrong_size_of_a_file(bad: Any, folder: Path) -> None:
    changed = content(folder)
    changed["files"]["cam.onnx"]["bytes"] = bad
    write_manifest(folder, changed)
    assert "cam.onnx" in refusal(folder)


@pytest.mark.parametrize("bad", ["", "0" * 63, "G" * 64, "A" * 64, 5])
def test_wrong_digest_of_a_file(bad: Any, folder: Path) -> None:
    changed = content(folder)
    changed["files"]["cam.onnx"]["sha256"] = bad
    write_manifest(folder, changed)
    assert "as 'files.cam.onnx.sha256', expected 64 digits" in refusal(folder)


def test_one_file_for_two_graphs(folder: Path) -> None:
    changed = content(folder)
    changed["graphs"]["affinity"] = changed["graphs"]["cam"]
    write_manifest(folder, changed)
    assert "gives 'cam.onnx' to 2 graphs or engines, expected one each" in refusal(folder)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (3, "has schema 3, expected 1 to 2: made by a newer wsss, update this one"),
        (10**40, "made by a newer wsss"),
        (0, "has schema 0, expected 1 to 2: export"),
        (True, "has schema True, expected 1 to 2: export"),
        (1.0, "has schema 1.0, expected 1 to 2: export"),
        ("1", "has schema '1', expected 1 to 2: export"),
        (None, "has schema None, expected 1 to 2: export"),
    ],
)
def test_schema(schema: Any, reason: str, folder: Path) -> None:
    write_manifest(folder, content(folder) | {"schema": schema})
    assert reason in refusal(folder)


# --- manifests in a wrong form ---


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "0.999980", "9" * 5000]
)
def test_other_numbers(number: str, folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text("ascii").replace("0.99998", number), "ascii")
    message = refusal(folder)
    assert "is damaged or no manifest" in message or "was changed" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is damaged or no manifest"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b"{}", "has schema None"),
        (b"[" * 100_000, "is damaged or no manifest"),
        (b'{"a":' * 100_000, "is damaged or no manifest"),
        (b'{"schema": 1, "a": ' + b"[" * 990 + b"]" * 990 + b"}", "bundle.json"),
        (b"\xff\xfe{\0}\0", "is damaged or no manifest"),
        (b"\x80\x04\x95", "is damaged or no manifest"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "has more than 16777216 bytes"),
    ],
)
def test_no_manifest(data: bytes, reason: str, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(data)
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.rstrip(),
        lambda data: data.replace(b'"name": "tiny"', b'"name": "tidy"'),
        lambda data: data.replace(b'"name": "tiny"', b'"name": "evil",\n  "name": "tiny"'),
        lambda data: data.replace(b"8.0", b"8.00"),
        lambda data: data.replace(b"\\u00e4", "ä".encode()),
        lambda data: data.replace(b"\\u00e4", b"\\u00E4"),
        lambda data: b"\xef\xbb\xbf" + data,
    ],
)
def test_edited(change: Callable[[bytes], bytes], folder: Path) -> None:
    original = (folder / MANIFEST).read_bytes()
    assert change(original) != original
    (folder / MANIFEST).write_bytes(change(original))
    message = refusal(folder)
    assert "its digest does not fit" in message or "is damaged or no manifest" in message


def test_sparse_giant_files(folder: Path) -> None:
    for file in (ENGINE, "cam.onnx", MANIFEST):
        with open(folder / file, "ab") as opened:
            opened.truncate(1 << 40)
        assert "bytes" in refusal(folder, file)
        shutil.rmtree(folder)
        write_bundle(folder)


# --- graphs of a stranger, whose digests fit ---


def replace_graph(folder: Path, data: bytes) -> None:
    (folder / "cam.onnx").write_bytes(data)
    write_manifest(folder, content(folder))


def test_hostile_graphs(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(36))
    outside = cam_model()
    (weight, _) = outside.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    replace_graph(folder, outside.SerializeToString())
    assert "keeps tensor 'weight' in another file, '../secret'" in refusal(folder, "cam.onnx")
    custom = cam_model()
    custom.graph.node[0].domain = "evil"
    replace_graph(folder, custom.SerializeToString())
    assert "of domain 'evil'" in refusal(folder, "cam.onnx")
    replace_graph(folder, b"PK\x03\x04" + bytes(100))
    assert "is a zip archive" in refusal(folder, "cam.onnx")


def test_a_graph_that_is_not_as_the_manifest_says(folder: Path) -> None:
    changed = content(folder)
    changed["graphs"]["cam"]["inputs"][0]["shape"] = ["n", 4]
    write_manifest(folder, changed)
    message = refusal(folder, "cam.onnx")
    assert (
        "has the input 'x' as float32 ['n', 3], expected by bundle.json: float32 ['n', 4]"
        in message
    )


def test_mutated_files_with_fitting_digests(folder: Path) -> None:
    original = (folder / "cam.onnx").read_bytes()
    generator = np.random.default_rng(7)
    for _ in range(100):
        data = bytearray(original)
        for _ in range(int(generator.integers(1, 6))):
            data[int(generator.integers(0, len(data)))] = int(generator.integers(0, 256))
        replace_graph(folder, bytes(data))
        try:
            open_bundle(folder)
        except ArtifactError as error:
            assert "cam.onnx" in str(error) and str(error).isprintable()


def test_needs_no_other_package_until_it_opens_graphs(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'pydantic', 'typer', 'cv2', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from wsss.errors import MissingDependencyError\n"
        "from wsss.runtime.bundle.open import is_bundle, open_bundle\n"
        "assert is_bundle(sys.argv[1])\n"
        "try:\n"
        "    open_bundle(sys.argv[1])\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnx is not installed")
