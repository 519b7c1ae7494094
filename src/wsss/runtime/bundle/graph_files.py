"""Open the graphs of a bundle: a file or engine that fits this machine, or a model on a server."""

from collections.abc import Sequence

from ...errors import ArtifactError, ConfigError
from ..backends.contract import OpenGraph
from ..backends.registry import Backend, Device, open_graph
from ..backends.tensorrt_backend import import_cuda_torch, import_tensorrt, version_of
from ..backends.triton.backend import TritonGraph, open_triton
from ..backends.triton.options import TritonOptions
from .open import Bundle, EngineEntry, check_again


def open_bundle_graph(
    bundle: Bundle,
    name: str,
    server: TritonOptions | None,
    *,
    backend: Backend,
    device: Device,
    threads: int | None,
) -> OpenGraph:
    """Open a graph of a bundle where it is to run.

    Args:
        server: where the graph runs for the backend triton, and only for it.
        backend, device, threads: see `open_graph`.

    Raises:
        ArtifactError: the bundle has no such graph, no engine that fits, or its file was changed;
        others: see `open_served` and `open_graph`.
    """
    if server is not None:
        return open_served(bundle, name, server)
    if backend != "tensorrt":
        path, runs_code = check_again(bundle, bundle.graph_path(name).name), False
    else:
        engines = bundle.engines_of(name)
        if not engines:
            raise ArtifactError(
                f"bundle '{bundle.folder}' has no TensorRT engine of graph '{name}': build it "
                f"on this machine by `wsss export {bundle.folder} --tensorrt`"
            )
        engine = engine_for_this_machine(engines)
        # TensorRT runs a version-compatible plan only with the code that lies in it.
        path, runs_code = check_again(bundle, engine.file), engine.version_compatible
    return open_graph(
        path, backend=backend, device=device, threads=threads, allow_host_code=runs_code
    )


AMPERE = (8, 0)
"""Compute capability from which a hardware-compatible engine runs."""


def engine_for_this_machine(engines: Sequence[EngineEntry]) -> EngineEntry:
    """The engine that fits GPU and TensorRT here; one built for exactly this GPU comes first.

    Raises:
        MissingDependencyError: TensorRT, torch or a CUDA device is missing.
        ArtifactError: none fits.
    """
    torch = import_cuda_torch("to choose an engine")
    capability: tuple[int, int] = torch.cuda.get_device_capability()
    return fitting_engine(engines, capability, version_of(import_tensorrt()))


def fitting_engine(
    engines: Sequence[EngineEntry], capability: tuple[int, int], version: str
) -> EngineEntry:
    """The engine that fits a compute capability and a TensorRT version.

    Raises:
        ArtifactError: none fits; the message lists what there is.
    """
    own = f"{capability[0]}.{capability[1]}"
    fitting = [
        engine
        for engine in engines
        if _opens_in(engine, version)
        and (
            engine.compute_capability == own
            or (engine.hardware_compatible and capability >= AMPERE)
        )
    ]
    if not fitting:
        listed = ", ".join(f"{e.file} ({e.gpu}, TensorRT {e.tensorrt})" for e in engines) or "none"
        raise ArtifactError(
            f"no engine fits compute capability {own} and TensorRT {version}; the bundle has "
            f"{listed}: build one here by `wsss export BUNDLE --tensorrt`"
        )
    return min(fitting, key=lambda e: (e.hardware_compatible, e.version_compatible))


def _opens_in(engine: EngineEntry, version: str) -> bool:
    """An engine opens in the version that built it; a version-compatible one in later ones too."""
    if engine.tensorrt == version:
        return True
    return engine.version_compatible and _numbers(engine.tensorrt) <= _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


_UNBOUNDED = 1_000_000
"""Retries; a job is bounded by its patience."""


def open_served(bundle: Bundle, graph: str, options: TritonOptions) -> TritonGraph:
    """Open a graph of a bundle on a server, in the version that was made of this bundle.

    An ensemble has no version to keep to: its digest is compared again when another one answers.

    Args:
        graph: of the bundle, whose file may be absent here; also the model's name on the server if
            `options` give none.

    Raises:
        ArtifactError: the bundle lacks the graph, or the server has a model of other bundles.
        ConfigError, ServerError, MissingDependencyError: see `open_triton`.
    """
    if graph not in bundle.graphs:
        bundle.graph_path(graph)  # which says so
    model = options.model or graph
    # Versions are numbered by whoever fills the repository: only the digest tells which it is.
    first = open_triton(options.url, model, deadline_s=options.deadline_s, retries=3)
    first.close()
    return open_triton(
        options.url,
        model,
        version=_version_of(bundle, graph, first, options.url),
        deadline_s=options.deadline_s,
        retries=_UNBOUNDED,
        patience_s=options.patience_s,
    )


def _version_of(bundle: Bundle, graph: str, opened: TritonGraph, url: str) -> str | None:
    """The version to ask for; None where the model keeps one alone and numbers it anew."""
    served = opened.served
    place = f"model '{served.name}' at {url}"
    digests = served.digests()
    if not digests:
        raise ArtifactError(
            f"{place} does not tell of which bundle it was made: serve a repository that `wsss "
            "export --triton` wrote"
        )
    # An ensemble is served in its newest version only. Asked for by number, it would be unknown
    # after an update with the same bundle; with another one the graph itself ends the job.
    served_now = {max(digests, key=int)} if served.steps else set(digests)
    fitting = [version for version in served_now if digests[version] == bundle.digest]
    if not fitting:
        found = ", ".join(f"{digest[:12]} (version {v})" for v, digest in digests.items())
        raise ArtifactError(
            f"{place} was made of bundle {found}, '{bundle.folder}' is {bundle.digest[:12]}: serve "
            "this bundle, or label by one that is served"
        )
    # The graphs of a bundle differ in their inputs.
    names = sorted(spec.name for spec in served.description.inputs)
    wanted = sorted(spec.name for spec in bundle.graphs[graph].inputs)
    if names != wanted:
        raise ConfigError(
            f"{place} takes {', '.join(names)}, expected {', '.join(wanted)} as in graph "
            f"'{graph}': choose another `server.model`"
        )
    return None if served.steps else max(fitting, key=int)
