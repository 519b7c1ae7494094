"""The folder of a job: claimed by one model and its settings, with a frozen list of images.

job.json          model, settings, sources: what a resumed job must share
inputs/           the frozen list, a part for each unit
masks/ ...        what the writers give, mirroring the inputs; shards/ with the format tar
units/            a commit record for each unit: without it nothing of a unit counts
entries/          what coco.json and others are collected from
timings.jsonl     where the time went, unit by unit
failures.csv, summary.json, report.html, coco.json ...   made from the records at the end
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, ConfigError
from ...version import __version__
from ..io.files import read_file, write_error
from ..io.image_labels import LabelTable
from ..io.palette import voc_palette
from ..io.staging import WORK, write_durably
from .formats.contract import JobView
from .image_list.frozen_list import FrozenList, freeze, open_list, unit_size_for
from .image_list.given_labels import image_refs
from .image_list.output_names import NamedImages
from .inputs.cloud import is_url
from .inputs.folder_scan import Skip
from .inputs.sources import Sources
from .plan import INPUTS, Plan, settings_digest
from .work.lock import while_freezing

JOB = "job.json"
_FORMAT = 1
_MAX_BYTES = 1 << 24
_MAX_CLASSES = 254
_SHOWN = 20
"""Sources that stand in `job.json`: a shell may have made thousands of one glob."""
_SHOWN_LENGTH = 200


def open_job(
    plan: Plan,
    sources: Sources,
    table: LabelTable | None = None,
    *,
    overwrite: bool = False,
    append: bool = False,
    skip: Skip = lambda path, reason: None,
) -> tuple[Plan, FrozenList]:
    """Make a folder the place of a job, or go on with the job that it holds.

    Args:
        plan: without the digest of the list.
        sources: looked at if there is no list yet, or to append.
        table: image-level labels; every image must be in it.
        overwrite: first remove what another model or other settings wrote.
        append: add images that are new in the sources, behind those of the list.
        skip: see `find`.

    Returns:
        The plan with its list.

    Raises:
        ArtifactError: the folder holds something else, or cannot be written.
        ConfigError: it holds another job; or labels that the model does not know.
        DataError: no images, or images without labels.
    """
    out = plan.out
    with while_freezing(out):
        for left in (out / INPUTS).glob(".*.tmp"):  # of one that was killed while it froze
            left.unlink()
        if overwrite and (out / JOB).is_file():
            _remove_all(out)
        if not (out / JOB).is_file():
            images = _begin(plan, sources, table, skip)
        else:
            found = _require_same(plan, sources, append)
            plan = replace(plan, begun_with=found["settings"])
            images = open_list(out / INPUTS, found["list"])
            if append:
                beside = (ref.output for ref in images)
                new = images.unlisted(sources.images(out, skip))
                with NamedImages(new, out / WORK, beside=beside) as named:
                    images = images.append(image_refs(named, table, plan.model.classes))
                # Until then the job has the old list, which is still there.
                _write_job(plan, sources, images)
    return replace(plan, list_digest=images.digest), images


def require_place(out: Path) -> None:
    """Refuse a file, and a folder that holds something else than a job; shards may be at work in
    it.

    Raises:
        ArtifactError: it cannot become the place of a job.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ArtifactError(f"'{out}' is a file: choose a folder for `out`")
    strangers = [path.name for path in out.iterdir() if path.name not in (WORK, INPUTS)]
    if strangers and not (out / JOB).is_file():
        raise ArtifactError(
            f"'{out}' is not empty ('{min(strangers)}') and holds no job of `wsss label`: choose "
            "another `out`"
        )


def inspect_job(plan: Plan, sources: Sources) -> tuple[Plan, FrozenList | None]:
    """The job that a folder holds, and its list; None: the call would begin a new one.

    Nothing is written.

    Raises:
        ArtifactError, ConfigError: as of `open_job`.
    """
    require_place(plan.out)
    if not (plan.out / JOB).is_file():
        return plan, None
    found = _require_same(plan, sources, append=False)
    return replace(plan, begun_with=found["settings"]), open_list(plan.out / INPUTS, found["list"])


def read_job(out: Path) -> dict[str, Any]:
    """`job.json` of a job's folder.

    Raises:
        ArtifactError: none, damaged, or of a newer version.
    """
    path = out / JOB
    if not path.is_file():
        raise ArtifactError(f"'{out}' holds no job of `wsss label`: expected a {JOB} in it")
    try:
        content = json.loads(read_file(path, max_bytes=_MAX_BYTES))
        kinds = {"settings": dict, "sources_digest": str, "list": str}
        is_whole = all(isinstance(content[key], kind) for key, kind in kinds.items())
        settings_digest(content["settings"])  # which knows no infinity
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ArtifactError(f"'{path}' is damaged: begin the job again in another folder")
    if content.get("format") != _FORMAT:
        raise ArtifactError(
            f"'{path}' has format {content.get('format')}, expected {_FORMAT}: use the wsss that "
            "began this job, or begin it again"
        )
    found: dict[str, Any] = content
    return found


def job_view(out: Path, settings: Mapping[str, Any]) -> JobView:
    """What the outputs of a job say of their origin.

    Args:
        settings: of its `job.json`.

    Raises:
        ArtifactError: they are damaged.
    """
    for texts in (settings.get("classes"), settings.get("formats")):
        if not (
            isinstance(texts, list)
            and len(texts) <= _MAX_CLASSES
            and all(isinstance(text, str) for text in texts)
        ):
            raise ArtifactError(f"'{out / JOB}' is damaged: begin the job again in another folder")
    return JobView(tuple(settings["classes"]), voc_palette(), dict(settings))


def _begin(plan: Plan, sources: Sources, table: LabelTable | None, skip: Skip) -> FrozenList:
    """Freeze the list of a new job."""
    out = plan.out
    require_place(out)
    with NamedImages(sources.images(out, skip), out / WORK) as named:
        refs = image_refs(named, table, plan.model.classes)
        images = freeze(refs, out / INPUTS, unit_size_for(len(named)))
    # Last: without it there is no job, and what was frozen is frozen again.
    _write_job(plan, sources, images)
    return images


def _write_job(plan: Plan, sources: Sources, images: FrozenList) -> None:
    content = {
        "format": _FORMAT,
        "made_by": __version__,
        "settings": plan.identity(),
        "sources": list(sources.names[:_SHOWN]),
        "sources_digest": _digest(sources),
        "list": images.digest,
    }
    text = json.dumps(content, indent=2, sort_keys=True)
    write_durably(plan.out / JOB, text.encode("ascii"), plan.out / WORK)


def _require_same(plan: Plan, sources: Sources, append: bool) -> dict[str, Any]:
    out = plan.out
    found, wanted = read_job(out), _flat(plan.identity())
    earlier = _flat(found["settings"])
    differing = [key for key in wanted if earlier.get(key) != wanted[key]]
    if found["sources_digest"] != _digest(sources) and not append:
        differing.append("images")
    if differing:
        remedy = "choose another `out`, or `overwrite` them"
        if differing == ["images"]:
            first = str(found.get("sources"))[:_SHOWN_LENGTH]
            remedy = f"give the same `images` as at first, {first}, `append` new ones, {remedy}"
        raise ConfigError(
            f"'{out}' holds labels made otherwise (different {', '.join(differing)}): {remedy}"
        )
    return found


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of the model among them, whose names then say what differs."""
    model = settings.get("model")
    return {**settings, **(_labels_of(model) if isinstance(model, dict) else {}), "model": None}


def _labels_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model, in one form for all that give the same labels.

    The mode `labels` is the walk with the recipe's CRF. Versions up to 0.1 wrote `by` for the mode,
    and for runs the option `--crf` as it was given, where None meant with the recipe's CRF in the
    modes `labels` and `segmenter`.
    """
    same = dict(model)
    if "by" in same:
        mode = same["mode"] = same.pop("by")
        recipe, crf = same.get("recipe"), same.get("crf")
        if isinstance(recipe, dict):
            crf = mode in ("labels", "segmenter") if crf is None else crf
            section = recipe.get("segmenter" if mode == "segmenter" else "walk")
            settings = section.get("crf") if isinstance(section, dict) else None
            iterations = settings.get("iterations") if isinstance(settings, dict) else None
            same["crf"] = bool(crf and iterations)
    if same.get("mode") == "labels":
        same["mode"] = "walk"
    return same


def _digest(sources: Sources) -> str:
    """The same for `photos`, `photos/` and its absolute path, which stands in the list."""
    places = [each if is_url(each) else os.path.abspath(each) for each in sources.names]
    if sources.follow_links:
        places.append("")  # no path
    return hashlib.sha256("\0".join(places).encode("utf-8", "surrogateescape")).hexdigest()


def _remove_all(out: Path) -> None:
    """Everything but the locks; `job.json` goes last, so that a killed removal can be repeated."""
    for path in sorted(out.iterdir(), key=lambda path: path.name == JOB):
        if path.name == WORK:
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
