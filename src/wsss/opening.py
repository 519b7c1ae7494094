"""`wsss.open_model`: one way to open a run, a bundle, or a bundle that a server serves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ArtifactError, ConfigError
from .runtime.bundle.open import is_bundle
from .runtime.predictor import Predictor

if TYPE_CHECKING:
    from .runtime.backends.registry import Backend, Device
    from .runtime.backends.triton.options import TritonOptions


def open_model(
    path: str | Path,
    *,
    device: "Device" = "auto",
    backend: "Backend" = "auto",
    url: str | None = None,
    server: "TritonOptions | None" = None,
    threads: int | None = None,
    thresholds: Sequence[float] | None = None,
    instances: bool = False,
) -> Predictor:
    """Open a model that labels images.

    Every model labels in the same default mode: with given classes in mode `walk` without dense
    CRF, else in mode `segmenter` without dense CRF; see `Predictor`.

    Args:
        path: a run of `wsss train`, or a bundle of `wsss export`, which needs neither torch nor
            training code.
        device: auto, cpu, cuda, or for bundles tensorrt (TensorRT within onnxruntime).
        backend: what computes a bundle: auto, onnxruntime, tensorrt or triton; runs use torch.
        url: Triton server that serves this bundle; implies the backend triton.
        server: the same with more options, in place of `url`.
        threads: CPU threads that may compute; None: as many as the library likes.
        thresholds: probability from which the classifier calls each class present; None: 0.5.
        instances: tell single objects in mode `walk`, if the model can (`has_instances`).

    Returns:
        Predictor: close it, or use it as a context manager, to release its memory.

    Raises:
        ArtifactError: neither a run nor a bundle, or a damaged one; ConfigError: options that do
        not fit the model; MissingDependencyError: a package is absent.

    Example::

        with wsss.open_model("bundle") as model:  # or "runs/photos"
            prediction = model.predict_one(wsss.read_image("new.jpg"), classes=["dog"])
        wsss.write_label_map("new.png", prediction.label)
    """
    if url is not None:
        from .runtime.backends.triton.options import TritonOptions

        if server is not None:
            raise ConfigError("`url` and `server` name the same thing: give one of them")
        server = TritonOptions(url)
    if server is not None and backend == "auto":
        backend = "triton"
    if threads is not None and threads < 1:
        raise ConfigError(f"`threads` is {threads}, must be at least 1")
    if is_bundle(path):
        from .runtime.backends.registry import require_known
        from .runtime.bundle.predictor import BundlePredictor

        require_known(backend, device, threads)
        return BundlePredictor(
            path,
            backend=backend,
            device=device,
            threads=threads,
            server=server,
            thresholds=thresholds,
            instances=instances,
        )
    if not Path(path, "recipe.toml").is_file():
        raise ArtifactError(
            f"'{path}' is neither a bundle nor a run: give a folder that `wsss export` or "
            "`wsss train` wrote"
        )
    if backend not in ("auto", "torch") or server is not None:
        raise ConfigError(
            f"'{path}' is no bundle, and a run is computed by torch: `wsss export` it for "
            f"`backend` {backend}"
        )
    if device == "tensorrt":
        raise ConfigError(
            f"'{path}' is no bundle, and a run is computed by torch: choose another `device`"
        )
    from .training.predict.run_predictor import RunPredictor

    return RunPredictor(path, device, threads=threads, thresholds=thresholds, instances=instances)
