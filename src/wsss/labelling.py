"""Bulk labelling by the path of a model; `wsss.label_images`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import ArtifactError, ConfigError
from .runtime.backends.registry import Backend, Device
from .runtime.bulk.plan import DEFAULT_TILE_PIXELS, Settings
from .runtime.bulk.run import LabelSummary, Shard, label_in_bulk
from .runtime.io.image_io import DEFAULT_MAX_PIXELS
from .runtime.io.progress import SILENT, Progress

if TYPE_CHECKING:
    from .runtime.bulk.predictor_spec import Model

_INSTANCE_FORMATS = ("instances", "coco-instances")


def label_images(
    images: str | Path | Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] | None = None,
    labels_path: str | Path | None = None,
    mode: Literal["segmenter", "labels", "walk", "cam"] | None = None,
    crf: bool | None = None,
    instances: bool = False,
    threshold: float | str | Path | None = None,
    min_confidence: float | None = None,
    backend: Backend = "auto",
    device: Device = "auto",
    url: str | None = None,
    batch: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    tile_pixels: int = DEFAULT_TILE_PIXELS,
    workers: int | None = 0,
    shard: str | None = None,
    follow_links: bool = False,
    retry_failed: bool = False,
    append: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Label many images with a bundle or a run, and write the label maps to a folder.

    The job is resumable: calling the function again with the same arguments continues an
    interrupted job and skips the images that are done. An image that cannot be labelled does not
    end the job; it is listed in `failures.csv`.

    Args:
        images: images, folders (searched recursively), glob patterns, `.txt` lists, `.tar` files or
            URLs.
        model: folder of a bundle or of a run.
        out: folder of the job; it is created, and label maps are written to `masks` in it.
        formats: output formats, such as png, confidence, overlay, coco, yolo; tar packs the files.
            Default: png, and with `instances` also instances and coco-instances.
        labels_path: CSV or JSON file with the image-level labels of every image.
        mode: which output of the model to write: segmenter, labels (walk and dense CRF), walk, or
            cam (runs only). Default: with `labels_path`, the walk of a bundle or the labels of a
            run; otherwise segmenter.
        crf: refine the result with the dense CRF of the recipe; default: as the recipe says for a
            run, False for a bundle.
        instances: find single objects too; requires a model of the method irnet.
        threshold: probability in (0, 1) above which the classifier reports a class, or the path of
            a JSON file with one for each class. Default: 0.5.
        min_confidence: set pixels with lower confidence to 255 (ignore); 0 to 1, bundles only.
        backend: what runs a bundle; auto takes onnxruntime if it is installed, and triton needs
            `url`.
        device: auto takes a GPU if there is one.
        url: address of a Triton server that serves the bundle, such as http://HOST:PORT.
        batch: number of images of equal size that go through the network together.
        max_pixels: images with more pixels fail.
        tile_pixels: images with more pixels are labelled in overlapping tiles.
        workers: number of worker processes; 0 labels in this process, None takes as many as cores
            and memory allow. Workers are spawned: with any, call this function below
            `if __name__ == "__main__":` in a script.
        shard: label only part i of n of the job, as the text `i/n`, with i from 0.
        follow_links: follow symbolic links to folders; cycles are detected.
        retry_failed: retry images that failed.
        append: add new images of the sources to an existing job.
        overwrite: delete any existing job in `out` first.
        progress: receives the progress; the default shows nothing.

    Returns:
        LabelSummary: how many images were labelled, kept from an earlier call, failed or remain.

    Raises:
        ConfigError: an argument is invalid, or the model cannot give what a format needs.
        DataError: an image source or the label file cannot be read.
        ArtifactError: `model` is neither a bundle nor a run, or `out` holds something else.
        MissingDependencyError: the package of the backend is not installed.
        ServerError: the server was unavailable for too long; finished images are kept.
    """
    if formats is None:
        formats = ("png", *_INSTANCE_FORMATS) if instances else ("png",)
    settings = Settings(tuple(formats), min_confidence, batch, max_pixels, tile_pixels)
    part = Shard.parse(shard) if shard is not None else None
    sources = [images] if isinstance(images, str | Path) else list(images)
    opened = _open(
        Path(model),
        mode,
        crf,
        labels_path is not None,
        backend,
        device,
        url,
        None if threshold is None else str(threshold),
        instances or not set(_INSTANCE_FORMATS).isdisjoint(formats),
    )
    return label_in_bulk(
        sources,
        opened,
        Path(out),
        settings=settings,
        labels_path=None if labels_path is None else Path(labels_path),
        workers=workers,
        shard=part,
        overwrite=overwrite,
        append=append,
        follow_links=follow_links,
        retry_failed=retry_failed,
        progress=progress,
    )


def _open(
    folder: Path,
    mode: str | None,
    crf: bool | None,
    has_labels: bool,
    backend: Backend,
    device: Device,
    url: str | None,
    threshold: str | None,
    instances: bool,
) -> "Model":
    from .runtime.bundle.open import is_bundle

    mode = mode or ("walk" if instances else None)
    if is_bundle(folder):
        from .runtime.backends.triton.options import TritonOptions
        from .runtime.bulk.bundle_model import bundle_model

        if (backend == "triton") != (url is not None):
            raise ConfigError("`backend` triton and `url` belong together: give both, or neither")
        return bundle_model(
            folder,
            kind=mode,
            crf=crf,
            has_labels=has_labels,
            backend=backend,
            device=device,
            server=TritonOptions(url) if url is not None else None,
            threshold=threshold,
            instances=instances,
        )
    if not (folder / "recipe.toml").is_file():
        raise ArtifactError(
            f"'{folder}' is neither a bundle nor a run: give a folder that `wsss export` or "
            "`wsss train` wrote"
        )
    if backend not in ("auto", "torch") or device == "tensorrt" or url is not None:
        raise ConfigError(
            f"'{folder}' is a run, which torch computes: leave `backend`, `url` and `device` "
            "tensorrt out, or export it"
        )
    from .training.predict.run_model import run_model

    return run_model(
        folder,
        kind=mode,
        crf=crf,
        has_labels=has_labels,
        device=device,
        threshold=threshold,
        instances=instances,
    )
