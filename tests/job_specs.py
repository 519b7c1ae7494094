"""What workers of a labelling job open, in one line."""

from pathlib import Path
from typing import Any

from wsss.opening import open_model
from wsss.runtime.bulk.predictor_spec import job_spec
from wsss.runtime.predictor import PredictorSpec


def spec_of(
    path: Path,
    mode: str | None = None,
    *,
    crf: bool | None = None,
    has_labels: bool = False,
    threshold: str | None = None,
    **options: Any,
) -> PredictorSpec:
    """A run or bundle on the CPU as the model of a job; `options` are those of `open_model`."""
    with open_model(path, **{"device": "cpu", **options}) as predictor:
        return job_spec(predictor, mode=mode, crf=crf, has_labels=has_labels, threshold=threshold)
