"""A repository that gets another version: numbers, settings, jobs and interrupts meanwhile."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")

import numpy as np
from command_line import everything, wsss
from PIL import Image
from tiny_run import files_of
from triton_requests import client_of
from triton_server import triton_server

from wsss.errors import ArtifactError, ConfigError
from wsss.export.triton import RepositoryOptions, write_repository
from wsss.export.triton import repository as repository_module
from wsss.export.triton.configs import CONFIG, read_config
from wsss.export.triton.options import options_from_json, options_from_settings, options_to_json
from wsss.export.triton.repository import read_contents
from wsss.runtime.backends.triton.backend import TritonGraph

SETTINGS = (
    "instances=2",
    "max_batch_size=4",
    "warmup=48x64,32x32",
    "preferred_batch_sizes=2,4",
    "intra_op_threads=1",
    "shrink_memory=true",
    "backends=cam:onnxruntime",
)


def test_options_survive_json_and_can_be_set_back() -> None:
    options = options_from_settings(SETTINGS)
    stored = json.loads(json.dumps(options_to_json(options)))
    assert options_from_json(stored) == options != RepositoryOptions()
    names = (setting.partition("=")[0] for setting in SETTINGS)
    assert options_from_settings([f"{name}=" for name in names], options) == RepositoryOptions()


def test_a_new_version_keeps_the_settings(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    given = [text for setting in SETTINGS for text in ("--triton-set", setting)]
    wsss("export", bundle, "--triton", folder, *given).succeeded()
    before = read_contents(folder)
    assert before.options == options_from_settings(SETTINGS) and list(before.versions) == [1]
    added = wsss("export", other_bundle, "--triton", folder, "--json").succeeded()
    told = json.loads(added.out)["triton"]
    assert (told["version"], told["changed"]) == (2, {})
    assert read_contents(folder).options == before.options
    config = read_config(folder / "cam" / CONFIG)
    assert (config.max_batch_size, config.instance_group[0].count) == (4, 2)

    more = ("--triton-set", "instances=3", "--triton-set", "max_batch_size=8")
    changed = wsss("export", bundle, "--triton", folder, *more).succeeded()
    assert changed.out.splitlines()[:2] == [
        "changed for all versions: max_batch_size 4 -> 8",
        "changed for all versions: instances 2 -> 3",
    ]
    contents = read_contents(folder)
    assert contents.options == options_from_settings(
        ["instances=3", "max_batch_size=8"], before.options
    )
    assert list(contents.versions) == [1, 2, 3]

    replaced = write_repository(bundle, folder, overwrite=True)
    assert replaced.version == 4  # a client that knows version 1 does not meet another bundle
    assert read_contents(folder).options == RepositoryOptions()


def test_what_would_break_clients_of_older_versions_is_refused(
    bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    write_repository(bundle, folder, RepositoryOptions(decode=True))
    before = everything(folder)
    with pytest.raises(ConfigError, match=r"max_batch_size is 8 .* cannot become 4: keep it"):
        write_repository(other_bundle, folder, RepositoryOptions(decode=True, max_batch_size=4))
    with pytest.raises(ArtifactError, match=r"differ in models \(decode, label_encoded\)"):
        write_repository(other_bundle, folder, RepositoryOptions())
    with pytest.raises(ArtifactError, match="has this bundle with these settings as version 1"):
        write_repository(bundle, folder)
    assert everything(folder) == before
    shutil.copytree(folder, tmp_path / "older")
    content = json.loads((tmp_path / "older" / "wsss.json").read_text())
    (tmp_path / "older" / "wsss.json").write_text(json.dumps(content | {"schema": 1}))
    with pytest.raises(ArtifactError, match="no Triton repository of wsss"):
        write_repository(bundle, tmp_path / "older")


def interrupted(real: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """A function that sends SIGTERM to this process when it has been called so many times."""
    calls = [0]

    def work(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        calls[0] += 1
        if calls[0] == after + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    return work


@pytest.mark.parametrize(
    ("place", "name", "after", "arguments"),
    [
        (repository_module, "check_repository", 0, ()),
        (repository_module, "atomic_write_bytes", 9, ("--overwrite",)),
        (Path, "rename", 0, ("--overwrite",)),
        (repository_module.os, "rename", 2, ()),
        (repository_module.os, "replace", 20, ()),
    ],
)
def test_sigterm_while_writing_leaves_everything_as_it_was(
    place: Any,
    name: str,
    after: int,
    arguments: tuple[str, ...],
    bundle: Path,
    other_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "models"
    write_repository(bundle, folder)
    before = everything(folder)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted(getattr(place, name), after))
        ended = wsss("export", other_bundle, "--triton", folder, *arguments)
    assert ended.code == 130 and "interrupted" in ended.err
    assert everything(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    wsss("export", other_bundle, "--triton", folder, *arguments).succeeded()


# Jobs through an ensemble, which is served in its newest version alone


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((64, 48)).save(folder / f"{number:03}.png")
    return folder


@pytest.mark.triton
@pytest.mark.parametrize("protocol", [pytest.param("http", marks=pytest.mark.slow), "grpc"])
def test_a_job_through_an_ensemble_goes_on_with_its_bundle_and_ends_with_another(
    triton_environment: object,
    bundle: Path,
    other_bundle: Path,
    protocol: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, images = tmp_path / "models", write_images(tmp_path / "images", 40)
    write_repository(bundle, folder, RepositoryOptions(intra_op_threads=1))
    explicit = ["--model-control-mode=explicit", "--load-model=label_ensemble"]
    with triton_server(folder, options=explicit) as server:
        url = f"{protocol}://{server.http if protocol == 'http' else server.grpc}"
        job = ("label", images, "--model", bundle, "--backend", "triton", "--url", url)
        job += ("--mode", "walk", "--server-model", "label_ensemble", "--in-flight", "1")
        job += ("--workers", "0")
        run = TritonGraph.run

        @contextmanager
        def loading_during(out: Path) -> Iterator[None]:
            """Loads what is in the repository when five images are written; the others wait."""
            is_loaded = threading.Event()

            def work() -> None:
                while len(pictures(out)) < 5:
                    time.sleep(0.005)
                loader = client_of(server, "grpc")
                loader.load_model("label_ensemble")
                loader.close()
                is_loaded.set()

            def waiting_run(self: TritonGraph, *arguments: Any) -> dict[str, Any]:
                if len(pictures(out)) >= 5:
                    assert is_loaded.wait(60)
                return run(self, *arguments)

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            with monkeypatch.context() as patch:
                patch.setattr(TritonGraph, "run", waiting_run)
                yield
            thread.join(60)

        def pictures(out: Path) -> dict[str, bytes]:
            return files_of(out, "masks/*.png")

        wsss(*job, "--out", tmp_path / "undisturbed").succeeded()
        expected = pictures(tmp_path / "undisturbed")

        out = tmp_path / "equal"
        write_repository(bundle, folder, version=2)
        with loading_during(out):
            wsss(*job, "--out", out).succeeded()
        assert pictures(out) == expected

        out = tmp_path / "exchanged"
        write_repository(other_bundle, folder)
        with loading_during(out):
            line = wsss(*job, "--out", out).line()
        assert "has another model as 'label_ensemble' now: serve the one" in line
        found = pictures(out)
        assert 5 <= len(found) < len(expected) and found.items() <= expected.items()
        # From the beginning it is refused, though `cam` and the others still serve version 2.
        assert "was made of bundle" in wsss(*job, "--out", tmp_path / "refused").line()
