"""The graphs of a bundle on a Triton server, which must serve that very bundle."""

from ...errors import ArtifactError, ConfigError
from ..backends.triton.backend import TritonGraph, open_triton
from ..backends.triton.options import TritonOptions
from .open import Bundle

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
