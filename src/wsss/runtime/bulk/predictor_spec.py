"""What a labelling job asks of a predictor, checked before any work."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ..io.files import read_file
from ..predictor import Predictor, PredictorSpec


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


_MAX_BYTES = 1 << 20
_SHOWN = 40
"""Characters of what stands where a number belongs."""
_REMEDY = "give a file that `wsss eval --calibrate` wrote, or one number"


def read_thresholds(text: str, classes: Sequence[str]) -> tuple[float, ...]:
    """A threshold for each class.

    Args:
        text: one number for all, or the path of a JSON file {"cat": 0.4, "dog": 0.6}, as `wsss eval
            --calibrate` writes it.

    Raises:
        ConfigError: neither, classes missing or unknown, or a number outside of (0, 1).
        DataError: the file cannot be read.
    """
    values: list[Any]
    try:
        values = [float(text)] * len(classes)
    except ValueError:
        values = _from_file(text, classes)
    for name, value in zip(classes, values, strict=True):
        if not (isinstance(value, int | float) and 0 < value < 1):  # which true is not
            raise ConfigError(
                f"the threshold of class '{name}' is {json.dumps(value)[:_SHOWN]}, expected a "
                "number between 0 and 1"
            )
    return tuple(values)


def require_classifier(is_asked: bool) -> None:
    """Refuse thresholds of a classifier that a job does not ask.

    Raises:
        ConfigError: it does not.
    """
    if not is_asked:
        raise ConfigError(
            "`threshold` is for the classifier, which neither `mode` segmenter nor `labels_path` "
            "uses: leave it out, or use `mode` walk"
        )


def _from_file(path: str, classes: Sequence[str]) -> list[Any]:
    if not Path(path).is_file():
        raise ConfigError(
            f"`threshold` is '{path}', expected a number between 0 and 1, or a JSON file with one "
            "for each class"
        )
    try:
        found = json.loads(read_file(path, max_bytes=_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is no JSON file ({error}): {_REMEDY}") from error
    if not isinstance(found, dict):
        raise DataError(f'\'{path}\' holds no object like {{"cat": 0.4, "dog": 0.6}}: {_REMEDY}')
    differing = sorted(set(found) ^ set(classes))
    if differing:
        raise ConfigError(
            f"'{path}' and the model differ in the classes {', '.join(differing)}: give each class "
            "of the model a threshold"
        )
    return [found[name] for name in classes]
