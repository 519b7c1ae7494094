"""A model repository on disk: written whole or not at all, and extended by a new version."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ...errors import ArtifactError, ConfigError
from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.io.files import atomic_write_bytes, make_folder, replace_folder, write_error
from ...version import __version__
from ..graphs.subgraph import drop_defaults, limit_sizes
from .check import check_repository
from .configs import (
    CONFIG,
    DECODE,
    ONNX_FILE,
    PYTHON_FILE,
    RELAY,
    config_text,
    decode_config,
    graph_config,
    image_spec,
    plan_files,
    relay_config,
)
from .ensembles import (
    ENCODED_ENSEMBLE,
    ENSEMBLE,
    encoded_config,
    ensemble_config,
    has_ensemble,
    relay_model,
)
from .options import RepositoryOptions, options_from_json, options_to_json

MARKER = "wsss.json"
"""At the root of a repository of ours; the server looks at folders alone."""
SCHEMA = 2
PLACEHOLDER = "ensemble.txt"
_PLACEHOLDER_TEXT = "An ensemble has no file; without this folder the server does not load it.\n"
MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class RepositoryResult:
    """What was written.

    Attributes:
        version: of all models of this bundle.
        models: names, ensembles last.
        changed: settings before and after, of a repository that had others.
    """

    folder: Path
    version: int
    models: tuple[str, ...]
    digest: str
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "repository": str(self.folder),
            "version": self.version,
            "models": list(self.models),
            "digest": self.digest,
            "changed": {name: list(values) for name, values in self.changed.items()},
        }


@dataclass(frozen=True)
class Contents:
    """What `wsss.json` tells of a repository.

    Attributes:
        versions: number -> digest of its bundle.
        options: that its configurations were rendered with.
    """

    versions: dict[int, str]
    options: RepositoryOptions


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
        repository: a new or empty folder, or a repository of ours, to which a version is added.
        options: default: those of the repository.
        version: of all models, greater than those that are there; default: the next one.
        overwrite: replace a repository of ours with all its versions and settings.

    Raises:
        ArtifactError: no bundle, or the folder is in use; nothing has changed then.
        ConfigError: impossible options; MissingDependencyError: tritonclient is not installed.
    """
    existing = require_free(repository, version=version, overwrite=overwrite)
    before = None if overwrite else existing
    if options is None:
        options = before.options if before else RepositoryOptions()
    bundle = open_bundle(bundle_folder)
    options.check_against(bundle)
    changed = _changes(before.options, options) if before else {}
    if before and version is None and not changed:
        _require_new(before, bundle, repository)
    # Numbered on even where the older ones go: a number never stands for two bundles.
    number = version or max(existing.versions if existing else {}, default=0) + 1
    digests = (before.versions if before else {}) | {number: bundle.digest}
    make_folder(repository.parent)
    with _work_folder(repository) as work:
        configs = render_configs(bundle, options, digests)
        write_configs(work, configs)
        _write_versions(work, bundle, configs, number, options.max_pixels)
        check_repository(work)
        atomic_write_bytes(work / MARKER, _marker(digests, options, configs))
        if before:
            _add_version(work, repository, configs, number)
        else:
            replace_folder(work, repository)
    return RepositoryResult(repository, number, tuple(configs), bundle.digest, changed)


def require_free(
    repository: Path, *, version: int | None = None, overwrite: bool = False
) -> Contents | None:
    """What is in a repository of ours; None where there is none yet.

    Raises:
        ArtifactError: the folder belongs to somebody else, or has such a version or a later one.
    """
    if version is not None and not 1 <= version <= MAX_VERSION:
        raise ArtifactError(f"version {version} of a model, expected 1 to {MAX_VERSION}")
    if repository.exists() and not repository.is_dir():
        raise ArtifactError(f"'{repository}' is a file: give a folder for the Triton repository")
    if not repository.is_dir() or not any(repository.iterdir()):
        return None
    found = read_contents(repository)
    newest = max(found.versions)
    if version is not None and version <= newest and not overwrite:
        raise ArtifactError(
            f"'{repository}' has version {newest}: the new one must be greater, such as "
            f"`version` {newest + 1}"
        )
    return found


def read_contents(repository: Path) -> Contents:
    """What `wsss.json` of a repository says.

    Raises:
        ArtifactError: somebody else's folder.
    """
    try:
        content = json.loads((repository / MARKER).read_text(encoding="utf-8"))
        versions = {int(number): str(digest) for number, digest in content["versions"].items()}
        if content["schema"] == SCHEMA and versions:
            return Contents(versions, options_from_json(content["options"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        pass
    raise ArtifactError(
        f"'{repository}' is not empty and no Triton repository of wsss {__version__}: choose "
        "another folder"
    )


def _changes(before: RepositoryOptions, after: RepositoryOptions) -> dict[str, tuple[Any, Any]]:
    """Settings that differ; a configuration stands for all versions of its model.

    Raises:
        ConfigError: clients or plans of the versions before would be refused.
    """
    old, new = options_to_json(before), options_to_json(after)
    changed = {name: (old[name], new[name]) for name in old if old[name] != new[name]}
    if "max_batch_size" in changed:
        has_plans = "tensorrt" in before.backends.values()
        if has_plans or after.max_batch_size < before.max_batch_size:
            reason = "plans were built for it" if has_plans else "requests may be as large"
            raise ConfigError(
                f"max_batch_size is {before.max_batch_size} for the versions before, whose "
                f"{reason}, and cannot become {after.max_batch_size}: keep it, or write another "
                "repository"
            )
    return changed


def _require_new(contents: Contents, bundle: Bundle, repository: Path) -> None:
    newest = max(contents.versions)
    if contents.versions[newest] == bundle.digest:
        raise ArtifactError(
            f"'{repository}' has this bundle with these settings as version {newest}: `overwrite` "
            f"it, or add it once more as `version` {newest + 1}"
        )


def render_configs(
    bundle: Bundle, options: RepositoryOptions, digests: dict[int, str]
) -> dict[str, Any]:
    """Model -> configuration, ensembles behind their steps; needs no file of the bundle.

    Args:
        digests: version -> digest of its bundle, with that of this bundle as the greatest.
    """
    configs = {name: graph_config(bundle, name, options, digests) for name in bundle.graphs}
    if has_ensemble(bundle):
        configs[RELAY] = relay_config(bundle, options, digests)
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


def _write_versions(
    folder: Path, bundle: Bundle, configs: dict[str, Any], version: int, max_pixels: int
) -> None:
    """What each model runs."""
    for name, config in configs.items():
        target = folder / name / str(version)
        make_folder(target)
        if config.platform == "ensemble":
            atomic_write_bytes(target / PLACEHOLDER, _PLACEHOLDER_TEXT.encode())
        elif name == DECODE:
            source = Path(__file__).with_name("decode_model.py")
            atomic_write_bytes(target / PYTHON_FILE, source.read_bytes())
        elif name == RELAY:
            _write_graph(target, relay_model(image_spec(bundle), len(bundle.classes)), max_pixels)
        elif config.backend == "tensorrt":
            names = plan_files(bundle, name)
            for engine in bundle.engines_of(name):
                shutil.copyfile(
                    bundle.folder / engine.file, target / names[engine.compute_capability]
                )
        else:
            model = onnx.load(bundle.graph_path(name), load_external_data=False)
            drop_defaults(model)
            _write_graph(target, model, max_pixels)


def _write_graph(folder: Path, model: onnx.ModelProto, max_pixels: int) -> None:
    limit_sizes(model, max_pixels)
    atomic_write_bytes(folder / ONNX_FILE, model.SerializeToString(deterministic=True))


def _marker(digests: dict[int, str], options: RepositoryOptions, configs: dict[str, Any]) -> bytes:
    content = {
        "schema": SCHEMA,
        "wsss": __version__,
        "versions": {str(number): digests[number] for number in sorted(digests)},
        "models": list(configs),
        "options": options_to_json(options),
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
            moved.append(folder)  # first: an interrupt may come right behind the move
            os.rename(work / folder.relative_to(repository), folder)
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
