"""Bulk labelling by the path of a model; `wsss.label_images`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .opening import open_model
from .runtime.backends.registry import Backend, Device
from .runtime.bulk.plan import DEFAULT_TILE_PIXELS, Settings
from .runtime.bulk.predictor_spec import job_spec
from .runtime.bulk.run import LabelSummary, Shard, label_in_bulk
from .runtime.io.image_io import DEFAULT_MAX_PIXELS
from .runtime.io.progress import SILENT, Progress
from .runtime.predictor import PredictorSpec

_INSTANCE_FORMATS = ("instances", "coco-instances")


def label_images(
    images: str | Path | Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] | None = None,
    labels_path: str | Path | None = None,
    mode: str | None = None,
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
        mode: which output of the model to write, one of `Predictor.modes`: segmenter, labels (walk
            and dense CRF), walk, or cam (runs only). Default: see `Predictor`.
        crf: refine the labels with the dense CRF of the recipe; default: only in mode labels.
        instances: find single objects too; requires a model with `has_instances`.
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
    with_instances = instances or not set(_INSTANCE_FORMATS).isdisjoint(formats)
    spec = open_job_spec(
        model,
        mode=mode,
        crf=crf,
        has_labels=labels_path is not None,
        threshold=None if threshold is None else str(threshold),
        device=device,
        backend=backend,
        url=url,
        instances=with_instances,
    )
    return label_in_bulk(
        sources,
        spec,
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


def open_job_spec(
    model: str | Path,
    *,
    mode: str | None,
    crf: bool | None,
    has_labels: bool,
    threshold: str | None,
    **options: Any,
) -> PredictorSpec:
    """Open a model once, so that its faults show before any work, and describe it for a job.

    Args:
        mode, crf, has_labels, threshold: see `job_spec`.
        options: of `open_model`.
    """
    with open_model(model, **options) as predictor:
        return job_spec(predictor, mode=mode, crf=crf, has_labels=has_labels, threshold=threshold)
