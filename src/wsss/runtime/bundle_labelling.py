"""Labelling by a bundle: neither torch nor training code is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .backends.choose import Backend, Device
from .backends.triton_options import TritonOptions
from .bundle_predictor import BundleKind, BundlePredictor
from .files import file_digest
from .image_labels import read_label_table
from .labelling import LabelSummary, find_images, label_images
from .progress import SILENT, Progress


def label_by_bundle(
    sources: Sequence[Path],
    folder: Path,
    out: Path,
    *,
    labels_path: Path | None = None,
    kind: str | None = None,
    crf: bool | None = None,
    backend: Backend = "auto",
    device: Device = "auto",
    server: TritonOptions | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> LabelSummary:
    """Label images and folders; see `BundlePredictor` for the ways to make labels.

    Args:
        labels_path: CSV or JSON of image-level labels, for the walk alone.
        kind: walk, segmenter, or labels: the walk with the CRF, unless `crf` is False; default:
            walk with image labels, else segmenter.
        server: of the backend triton; several images are then under way at once.

    Raises:
        ConfigError, DataError, ArtifactError: see `label_images` and `open_bundle`.
        ServerError: the server was away or overloaded for too long; what was finished is kept.
    """
    table = read_label_table(labels_path) if labels_path else None
    predictor = BundlePredictor(folder, backend=backend, device=device, server=server)
    crf = kind == "labels" if crf is None else crf
    chosen = _kind("walk" if kind == "labels" else kind, predictor, table is not None)
    if chosen == "segmenter" and table is not None:
        raise ConfigError("--by segmenter takes no image-level labels: leave --labels out")
    images = find_images(sources, leave_out=out)

    def predict(image: NDArray[np.uint8], labels: Sequence[int] | None) -> NDArray[np.uint8]:
        return predictor.label(image, labels, chosen, crf=crf)

    try:
        graph = predictor.graph("segmenter" if chosen == "segmenter" else "label")
        described = graph.describe()
        provenance = {
            "model": {"bundle": predictor.bundle.digest},
            "by": chosen,
            "crf": crf,
            # Of a server what computes on it: a job may go on with another one, or without.
            "backend": described.backend,
            "image_labels": file_digest(labels_path) if labels_path else None,
        }
        return label_images(
            images,
            predict,
            out,
            provenance=provenance,
            classes=predictor.classes,
            labels=table,
            overwrite=overwrite,
            in_flight=server.in_flight if server is not None else 1,
            on_stop=graph.close,  # or they would go on asking a server that is away
            progress=progress,
        )
    finally:
        predictor.close()


def _kind(name: str | None, predictor: BundlePredictor, has_labels: bool) -> BundleKind:
    for kind in get_args(BundleKind):
        if name == kind:
            chosen: BundleKind = kind
            return chosen
    if name is not None:
        raise ConfigError(f"a bundle labels by walk, labels or segmenter, not by '{name}'")
    return predictor.default_kind(has_labels)
