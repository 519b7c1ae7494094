"""Which of a bundle's engines runs on this machine."""

from collections.abc import Sequence

from ...errors import ArtifactError
from ..backends.tensorrt_backend import import_cuda_torch, import_tensorrt, version_of
from .open import EngineEntry

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
