"""Real servers for tests, from the environment of `make triton-env`, or the reason of a skip."""

import os
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from wsss.runtime.serving.installation import ENVIRONMENT_VARIABLE, Installation, find_installation
from wsss.runtime.serving.local_server import LocalServer

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 60.0
EXIT_SECONDS = 5


@lru_cache(maxsize=1)
def find_server() -> Installation:
    """The server of `WSSS_TRITON_ENV`, or of `.venv-triton` at the root of the repository.

    Raises:
        MissingDependencyError: there is none; the message says what is missing.
    """
    return find_installation(Path(os.environ.get(ENVIRONMENT_VARIABLE) or ROOT / ".venv-triton"))


@contextmanager
def triton_server(
    repository: str | os.PathLike[str],
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = READY_SECONDS,
) -> Iterator[LocalServer]:
    """A server that is ready; at the end nothing of it is left.

    Args:
        environment: further variables of the process.
    """
    server = LocalServer(
        find_server(),
        Path(repository),
        options=options,
        variables={"OMP_NUM_THREADS": "1", **(environment or {})},
        drain_seconds=EXIT_SECONDS,
    )
    with closing(server):
        server.start(ready_seconds=ready_seconds)
        yield server


def is_live(server: LocalServer) -> bool:
    """Whether a server answers at all, ready or not."""
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/health/live", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def num_waiting(metrics: str, model: str) -> int:
    """Requests that a server has accepted for a model and not begun.

    Args:
        metrics: URL of the server's metrics.
    """
    with urllib.request.urlopen(metrics) as answer:
        text = answer.read().decode()
    name = "nv_inference_pending_request_count"
    return sum(
        map(int, re.findall(rf'^{name}{{model="{model}",[^}}]*}} (\d+)', text, re.MULTILINE))
    )
