"""Output formats of a job, by name: those of this package and those that other packages add.

Another package adds a format by an entry point of the group `wsss.writers`: its name is the
format's, its value a subclass of `contract.Writer`.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from ....errors import ConfigError
from .contract import JobView, Writer
from .image_files import ConfidenceWriter, InstancesWriter, OverlayWriter, PngWriter, ScoresWriter
from .labelstudio import LabelStudioWriter
from .polygons import LabelMeWriter, YoloWriter
from .runs import CocoInstancesWriter, CocoWriter, CvatWriter

PLUGIN_GROUP = "wsss.writers"

_WRITERS: dict[str, type[Writer]] = {
    "png": PngWriter,
    "confidence": ConfidenceWriter,
    "scores": ScoresWriter,
    "overlay": OverlayWriter,
    "coco": CocoWriter,
    "instances": InstancesWriter,
    "coco-instances": CocoInstancesWriter,
    "yolo": YoloWriter,
    "labelstudio": LabelStudioWriter,
    "cvat": CvatWriter,
    "labelme": LabelMeWriter,
}


def writer_names() -> list[str]:
    """Every format that can be asked for: ours first, then those of other packages."""
    return [*_WRITERS, *sorted({point.name for point in _plugins()} - set(_WRITERS))]


def writer_class(name: str) -> type[Writer]:
    """The class behind a format's name; a plugin is imported only here.

    Raises:
        ConfigError: unknown, offered more than once, or a plugin that cannot be loaded.
    """
    points = [point for point in _plugins() if point.name == name]
    if not points:
        if name not in _WRITERS:
            raise ConfigError(f"unknown format '{name}': choose among {', '.join(writer_names())}")
        return _WRITERS[name]
    if len(points) > 1 or name in _WRITERS:
        sources = [*(["wsss"] if name in _WRITERS else []), *map(_package, points)]
        raise ConfigError(
            f"format '{name}' is offered by {', '.join(sources)}: uninstall all but one of them"
        )
    return _load(points[0])


def open_writers(names: Iterable[str], job: JobView) -> list[Writer]:
    """A writer for each name, in that order.

    Raises:
        ConfigError: a name given twice, or what `writer_class` refuses.
    """
    asked = list(names)
    for name in asked:
        if asked.count(name) > 1:
            raise ConfigError(f"format '{name}' is given {asked.count(name)} times: give it once")
    return [writer_class(name)(job) for name in asked]


def _plugins() -> list[EntryPoint]:
    return list(entry_points(group=PLUGIN_GROUP))


def _load(point: EntryPoint) -> type[Writer]:
    broken = f"format '{point.name}' of {_package(point)} cannot be used"
    remedy = "mend or uninstall that package"
    try:
        found = point.load()
    except Exception as error:  # whatever a stranger's module raises when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{broken}: {reason}: {remedy}") from error
    if not (isinstance(found, type) and issubclass(found, Writer)):
        raise ConfigError(f"{broken}: `{point.value}` is no subclass of `Writer`: {remedy}")
    return found


def _package(point: EntryPoint) -> str:
    return f"package '{point.dist.name}'" if point.dist else f"`{point.value}`"
