"""A model repository on disk: written whole or not at all, and extended by a new version."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ...errors import ArtifactError
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.files import atomic_write_bytes, make_folder, replace_folder, write_error
from ...version import __version__
from ..subgraph import drop_defaults
from .check import check_repository
from .configs import (
    DECODE,
    DEFAULT_PRESENT,
    ONNX_FILE,
    PYTHON_FILE,
    decode_config,
    default_present_config,
    graph_config,
    plan_files,
)
from .ensembles import (
    ENCODED_ENSEMBLE,
    ENSEMBLE,
    default_present_model,
    encoded_config,
    ensemble_config,
    has_ensemble,
)
from .messages import CONFIG, config_text
from .options import SERVED_GRAPHS, RepositoryOptions

MARKER = "wsss.json"
"""At the root of a repository of ours; the server looks at folders alone."""
SCHEMA = 1
PLACEHOLDER = "ensemble.txt"
_PLACEHOLDER_TEXT = "An ensemble has no file; without this folder the server does not load it.\n"
MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class RepositoryResult:
    """What was written.

    Attributes:
        version: of all models of this bundle.
        models: names, ensembles last.
    """

    folder: Path
    version: int
    models: tuple[str, ...]
    digest: str

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "repository": str(self.folder),
            "version": self.version,
            "models": list(self.models),
            "digest": self.digest,
        }


def write_repository(
    bundle_folder: Path,
    repository: Path,
    options: RepositoryOptions | None = None,
    *,
    version: int | None = None,
    overwrite: bool = False,
) -> RepositoryResult:
    """Write a bundle as a Triton model repository, or as a new version into one.

    Args:
        repository: a new or empty folder; or a repository of ours, with `version` or `overwrite`.
        version: of all models; default 1. In a repository of ours it is added to those that are
            there, and has to be greater.
        overwrite: replace a repository of ours with all its versions.

    Raises:
        ArtifactError: no bundle, or the folder is in use; nothing has changed then.
        ConfigError: impossible options; MissingDependencyError: tritonclient is not installed.
    """
    options = options or RepositoryOptions()
    existing = require_free(repository, version=version, overwrite=overwrite)
    bundle = open_bundle(bundle_folder)
    options.check_against(bundle)
    digests = {} if overwrite else dict(existing)
    digests[version or 1] = bundle.digest
    make_folder(repository.parent)
    with _work_folder(repository) as work:
        configs = render_configs(bundle, options, digests)
        write_configs(work, configs)
        _write_versions(work, bundle, configs, max(digests))
        check_repository(work)
        atomic_write_bytes(work / MARKER, _marker(digests, configs))
        if existing and not overwrite:
            _add_version(work, repository, configs, max(digests))
        else:
            replace_folder(work, repository)
    return RepositoryResult(repository, max(digests), tuple(configs), bundle.digest)


def require_free(
    repository: Path, *, version: int | None = None, overwrite: bool = False
) -> dict[int, str]:
    """Versions and digests in a repository of ours; empty where there is none yet.

    Raises:
        ArtifactError: the folder belongs to somebody else, or its use was not asked for.
    """
    if version is not None and not 1 <= version <= MAX_VERSION:
        raise ArtifactError(f"version {version} of a model, expected 1 to {MAX_VERSION}")
    if repository.exists() and not repository.is_dir():
        raise ArtifactError(f"'{repository}' is a file: give a folder for the Triton repository")
    if not repository.is_dir() or not any(repository.iterdir()):
        return {}
    found = read_versions(repository)
    if overwrite:
        return found
    if version is None:
        raise ArtifactError(
            f"'{repository}' is a Triton repository already: --overwrite it, or add a version by "
            f"--triton-version {max(found) + 1}"
        )
    if version <= max(found):
        raise ArtifactError(
            f"'{repository}' has version {max(found)}: the new one must be greater, such as "
            f"--triton-version {max(found) + 1}"
        )
    return found


def read_versions(repository: Path) -> dict[int, str]:
    """Version -> digest of its bundle, of a repository of ours.

    Raises:
        ArtifactError: somebody else's folder.
    """
    try:
        content = json.loads((repository / MARKER).read_text(encoding="utf-8"))
        versions = {int(number): str(digest) for number, digest in content["versions"].items()}
        if content["schema"] == SCHEMA and versions:
            return versions
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ArtifactError(
        f"'{repository}' is not empty and no Triton repository of wsss: choose another folder"
    )


def render_configs(
    bundle: Bundle, options: RepositoryOptions, digests: dict[int, str]
) -> dict[str, Any]:
    """Model -> configuration, ensembles behind their steps; needs no file of the bundle.

    Args:
        digests: version -> digest of its bundle, with that of this bundle as the greatest.
    """
    names = [name for name in SERVED_GRAPHS if name in bundle.graphs]
    configs = {name: graph_config(bundle, name, options, digests) for name in names}
    if not configs:
        raise ArtifactError(
            f"bundle '{bundle.folder}' has no graph to serve: expected one of "
            f"{', '.join(SERVED_GRAPHS)}"
        )
    if has_ensemble(bundle):
        configs[DEFAULT_PRESENT] = default_present_config(bundle, options, digests)
    if options.decode:
        configs[DECODE] = decode_config(bundle, options, digests)
    if has_ensemble(bundle):
        configs[ENSEMBLE] = ensemble_config(bundle, options, digests)
    if options.decode:
        target = next((n for n in (ENSEMBLE, "label", "segmenter") if n in configs), None)
        if target is None:
            raise ArtifactError(f"bundle '{bundle.folder}' makes no labels, so decode has no use")
        configs[ENCODED_ENSEMBLE] = encoded_config(bundle, configs[target], options, digests)
    return configs


def write_configs(folder: Path, configs: dict[str, Any]) -> None:
    """`config.pbtxt` of each model."""
    for name, config in configs.items():
        atomic_write_bytes(folder / name / CONFIG, config_text(config).encode())


def _write_versions(folder: Path, bundle: Bundle, configs: dict[str, Any], version: int) -> None:
    """What each model runs."""
    for name, config in configs.items():
        target = folder / name / str(version)
        make_folder(target)
        if config.platform == "ensemble":
            atomic_write_bytes(target / PLACEHOLDER, _PLACEHOLDER_TEXT.encode())
        elif name == DECODE:
            source = Path(__file__).with_name("decode_model.py")
            atomic_write_bytes(target / PYTHON_FILE, source.read_bytes())
        elif name == DEFAULT_PRESENT:
            _write_graph(target, default_present_model(len(bundle.classes)))
        elif config.backend == "tensorrt":
            names = plan_files(bundle, name)
            for engine in bundle.engines_of(name):
                shutil.copyfile(
                    bundle.folder / engine.file, target / names[engine.compute_capability]
                )
        else:
            model = onnx.load(bundle.graph_path(name), load_external_data=False)
            drop_defaults(model)
            _write_graph(target, model)


def _write_graph(folder: Path, model: onnx.ModelProto) -> None:
    atomic_write_bytes(folder / ONNX_FILE, model.SerializeToString(deterministic=True))


def _marker(digests: dict[int, str], configs: dict[str, Any]) -> bytes:
    content = {
        "schema": SCHEMA,
        "wsss": __version__,
        "versions": {str(number): digests[number] for number in sorted(digests)},
        "models": list(configs),
    }
    return (json.dumps(content, indent=2) + "\n").encode()


@contextmanager
def _work_folder(repository: Path) -> Iterator[Path]:
    """A folder beside the repository, so that its parts can be moved there; gone at the end."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{repository.name}.", dir=repository.parent))
    except OSError as error:
        raise write_error(repository, error) from error
    try:
        yield work
    except OSError as error:
        raise write_error(repository, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _add_version(work: Path, repository: Path, configs: dict[str, Any], version: int) -> None:
    """Move version folders, then configurations, into a repository that may be in use.

    Graphs come before ensembles: an ensemble of the new version finds its steps, one of the old
    version keeps its own. When something fails, what was moved is taken back.
    """
    before = check_repository(repository)
    _require_same(before, configs, repository)
    # Leftovers of a killed call: the marker did not get so far.
    stale = [repository / name / str(version) for name in configs]
    for folder in stale:
        if folder.exists():
            raise ArtifactError(
                f"'{folder}' is there, though '{repository / MARKER}' does not know it: remove it"
            )
    moved: list[Path] = []
    replaced: dict[Path, bytes] = {}
    try:
        for folder in stale:
            os.rename(work / folder.relative_to(repository), folder)
            moved.append(folder)
        for name in [*(f"{each}/{CONFIG}" for each in configs), MARKER]:
            replaced[repository / name] = (repository / name).read_bytes()
            os.replace(work / name, repository / name)
    except BaseException:
        for path, content in replaced.items():
            atomic_write_bytes(path, content)
        for folder in moved:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _require_same(before: dict[str, Any], after: dict[str, Any], repository: Path) -> None:
    """A configuration stands for all versions of its model.

    Raises:
        ArtifactError: models, tensors, classes or backends differ.
    """
    remedy = "write it into another repository"
    if set(before) != set(after):
        differing = ", ".join(sorted(set(before) ^ set(after)))
        raise ArtifactError(
            f"'{repository}' and the new version differ in models ({differing}): {remedy}"
        )
    for name, config in after.items():
        older = before[name]
        keys = ("wsss.classes", "wsss.layout")
        facts = [
            (
                [tensor.SerializeToString(deterministic=True) for tensor in each.input],
                [tensor.SerializeToString(deterministic=True) for tensor in each.output],
                each.backend,
                dict(each.cc_model_filenames),
                [each.parameters[key].string_value for key in keys],
            )
            for each in (older, config)
        ]
        if facts[0] != facts[1]:
            raise ArtifactError(
                f"'{repository}' has a model '{name}' of other classes, tensors or files than the "
                f"new version: {remedy}"
            )
