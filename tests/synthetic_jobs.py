"""Folders of labelling jobs as workers leave them, without a model that labels."""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from wsss.runtime.bulk.image_list.frozen_list import FrozenList, freeze, open_list
from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.job import JOB, read_job
from wsss.runtime.bulk.plan import INPUTS, settings_digest
from wsss.runtime.bulk.timings import TIMINGS
from wsss.runtime.bulk.work.records import ImageRecord, read_images, recorded_units, write_record
from wsss.runtime.io.staging import WORK


def list_of(out: Path) -> FrozenList:
    """The images of a job that is there."""
    return open_list(out / INPUTS, read_job(out)["list"])


def records_of(out: Path) -> list[ImageRecord]:
    """What became of each image that is through, in the order of the list."""
    images = list_of(out)
    units = sorted(recorded_units(out))
    return [record for unit in units for record in read_images(out, images, unit)]


def write_job(
    out: Path, refs: Iterable[ImageRef], classes: Sequence[str], unit_size: int, **settings: Any
) -> FrozenList:
    """A job whose list is frozen, and none of whose units is labelled."""
    images = freeze(refs, out / INPUTS, unit_size)
    described = {
        "model": {"bundle": "0123456789abcdef" * 4, "by": "walk", "backend": "onnxruntime"},
        "classes": list(classes),
        "formats": ["png"],
        "image_labels": None,
        "min_confidence": None,
        **settings,
    }
    job = {"format": 1, "made_by": "0", "settings": described, "sources_digest": "", "sources": []}
    (out / JOB).write_text(json.dumps({**job, "list": images.digest}))
    return images


def write_units(
    out: Path,
    images: FrozenList,
    records: Iterable[ImageRecord],
    *,
    leave_out: Collection[int] = (),
    seconds: float = 10.0,
) -> None:
    """Records and timings of all units, one after the other, but for those to be left out.

    Args:
        records: of all images, in the order of the list.
        seconds: that each unit took.
    """
    (out / WORK).mkdir(exist_ok=True)
    digest, rest = settings_digest(read_job(out)["settings"]), iter(records)
    for unit, part in enumerate(images.parts):
        of_unit = [next(rest) for _ in range(part.count)]
        if unit in leave_out:
            continue
        write_record(out, unit, digest, of_unit, out / WORK)
        stages = {"read": 0.1, "network": 0.8, "wait": 3, "encode": 0.06, "write": 0.04}
        times = {name: seconds * share for name, share in stages.items()}
        line = {
            "unit": unit,
            "images": part.count,
            "ended": 1e9 + seconds * (unit + 1),
            "seconds": times | {"all": seconds, "idle": 0.05 * seconds},
        }
        with open(out / TIMINGS, "a") as file:
            file.write(json.dumps(line) + "\n")
