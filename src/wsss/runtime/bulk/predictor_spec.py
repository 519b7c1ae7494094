"""What a labelling job asks of a predictor, checked before any work."""

from ...errors import ConfigError
from ..predictor import Predictor, PredictorSpec
from .class_thresholds import read_thresholds, require_classifier


def job_spec(
    predictor: Predictor,
    *,
    mode: str | None = None,
    crf: bool | None = None,
    has_labels: bool = False,
    threshold: str | None = None,
) -> PredictorSpec:
    """Return how the workers of a job open this predictor, and what they label by.

    Args:
        mode, crf: see `Predictor.predict`; the defaults are those of `Predictor`.
        has_labels: whether the job has image-level labels.
        threshold: see `read_thresholds`.

    Raises:
        ConfigError: options that do not fit the model or each other; ArtifactError,
        MissingDependencyError, ServerError: the model lacks what the mode needs.
    """
    if mode is not None and has_labels and not predictor.mode_of(mode).takes_classes:
        raise ConfigError(f"`mode` {mode} takes no image-level labels: leave `labels_path` out")
    mode, crf = predictor.choose(mode, crf, has_labels)
    if predictor.with_instances and (mode != "walk" or crf):
        raise ConfigError(
            "`instances` requires `mode` walk without the dense CRF: add `mode` walk and remove "
            "`crf`"
        )
    if threshold is not None:
        require_classifier(predictor.mode_of(mode).takes_classes and not has_labels)
        predictor.thresholds = read_thresholds(threshold, predictor.classes)
    return predictor.spec(mode, crf)
