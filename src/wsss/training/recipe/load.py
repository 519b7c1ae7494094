"""Recipes: every hyper-parameter of every stage, checked as a whole before any work starts.

A recipe is a TOML file; the sections are the stages in the order of the method. Shipped recipes
live in `wsss/recipes` and are taken by name.
"""

import json
import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError

from ...errors import ConfigError
from ...runtime.faults import fault_text
from ..methods.affinitynet.recipe import AffinitySection
from ..methods.cian.recipe import CianLabelsSection, CianSection, CianSegmenterSection
from ..methods.irnet.recipe import (
    InstancesSection,
    IRNetSection,
    IRNetSeedsSection,
    IRNetWalkSection,
)
from ..methods.sec.recipe import PlainSegmenterSection, SecSegmenterSection
from ..methods.selfguided.recipe import (
    SelfGuidedSection,
    SelfGuidedSeedsSection,
    SelfGuidedSegmenterSection,
)
from .base import Section
from .cam import CamSection
from .sections import BackboneSection, DataSection, SeedsSection, SegmenterSection, WalkSection

Training = CamSection | AffinitySection | IRNetSection | SegmenterSection
PredictionKind = Literal["cam", "walk", "labels", "segmenter"]
"""cam: maps alone; walk: after the random walk; labels: with the recipe's dense CRF."""


class Recipe(Section):
    """What the recipes of all methods have; see `docs/recipes.md` for every key."""

    method: str
    """The system to train."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
    """What runs and messages call it, and a folder of `wsss compare`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of initial values, order, augmentation and dropout."""
    data: DataSection = DataSection()
    backbone: BackboneSection
    cam: CamSection
    seeds: SeedsSection = SeedsSection()
    segmenter: SegmenterSection

    def trainings(self) -> dict[str, Training]:
        """By stage: sections of those that train a network."""
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: found for name, found in sections.items() if hasattr(found, "train")}

    def ways(self) -> dict[PredictionKind, tuple[str, ...]]:
        """In which a run labels any image, and the stages whose networks each needs."""
        return {"cam": ("cam",), "segmenter": ("segmenter",)}


class PlainSegmenterRecipe(Recipe):
    """Of methods whose segmenter is a plain network that learns the label maps of a stage."""

    segmenter: PlainSegmenterSection


class WalkRecipe(PlainSegmenterRecipe):
    """Of methods whose pseudo labels come of a random walk on the CAMs.

    This alone makes a method one that walks: its runs label by `walk` and `labels` too, its bundles
    have the graphs of the walk, its reports show it.
    """

    walk: WalkSection = WalkSection()

    affinity_stage: ClassVar[str]
    """Stage whose network gives the affinities of the walk."""

    def ways(self) -> dict[PredictionKind, tuple[str, ...]]:
        """See `Recipe`."""
        walking = ("cam", self.affinity_stage)
        return {"cam": ("cam",), "walk": walking, "labels": walking, "segmenter": ("segmenter",)}


class AffinityNetRecipe(WalkRecipe):
    """A whole AffinityNet run."""

    method: Literal["affinitynet"]
    affinity: AffinitySection

    affinity_stage = "affinity"


class IRNetRecipe(WalkRecipe):
    """A whole IRNet run."""

    method: Literal["irnet"]
    seeds: IRNetSeedsSection = IRNetSeedsSection()
    irnet: IRNetSection
    walk: IRNetWalkSection = IRNetWalkSection()
    instances: InstancesSection = InstancesSection()

    affinity_stage = "irnet"


class CianRecipe(Recipe):
    """A whole CIAN run."""

    method: Literal["cian"]
    cian: CianSection
    labels: CianLabelsSection = CianLabelsSection()
    segmenter: CianSegmenterSection


class SecRecipe(PlainSegmenterRecipe):
    """A whole SEC run."""

    method: Literal["sec"]
    segmenter: SecSegmenterSection


class SelfGuidedRecipe(Recipe):
    """A whole run of the self-guided network."""

    method: Literal["selfguided"]
    seeds: SelfGuidedSeedsSection = SelfGuidedSeedsSection()
    segmenter: SelfGuidedSegmenterSection
    selfguided: SelfGuidedSection = SelfGuidedSection()


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
RECIPES: dict[str, type[Recipe]] = {
    "affinitynet": AffinityNetRecipe,
    "irnet": IRNetRecipe,
    "cian": CianRecipe,
    "sec": SecRecipe,
    "selfguided": SelfGuidedRecipe,
}
"""By method."""


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("wsss") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides and check the result.

    Args:
        name_or_path: name of a shipped recipe such as `affinitynet_mobilenetv2`, or path of a TOML
            file; `docs/recipes.md` lists both the recipes and their keys.
        overrides: strings such as `cam.train.epochs=5`; a value that is not valid TOML is taken as
            a string.

    Returns:
        Recipe: all settings of a method, checked; it cannot be modified.

    Raises:
        ConfigError: there is no such recipe, it is not valid TOML, or it has faults; the message
            lists all of them.
    """
    label, text = _read_recipe_text(str(name_or_path))
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe '{label}' is no valid TOML: {error}: mend it there") from None
    for override in overrides:
        _apply_override(values, override)
    return parse_recipe(values, label)


def parse_recipe(values: dict[str, Any], label: str) -> Recipe:
    """Check parsed values; raises ConfigError with every fault, see `load_recipe`."""
    method = values.get("method")
    kind = RECIPES.get(method) if isinstance(method, str) else None
    if kind is None:
        found = "missing" if method is None else repr(method)
        methods = " or ".join(repr(name) for name in RECIPES)
        raise ConfigError(f"recipe '{label}': method is {found}, must be {methods}")
    faults = [*_crop_faults(values, kind), *_start_faults(values)]
    try:
        recipe = kind.model_validate(values)
    except ValidationError as error:
        faults = [*_describe_faults(error, kind), *faults]
    if faults:
        raise ConfigError(f"recipe '{label}': {'; '.join(faults)}")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML, every default written out; `load_recipe` reads it back."""
    return _dump_table(recipe.model_dump(mode="json", exclude_none=True), ())


def _read_recipe_text(name_or_path: str) -> tuple[str, str]:
    if name_or_path in shipped_recipes():
        file = resources.files("wsss") / "recipes" / f"{name_or_path}.toml"
        return f"{name_or_path}.toml", file.read_text(encoding="utf-8")
    path = Path(name_or_path)
    if path.suffix != ".toml" or not path.is_file():
        names = ", ".join(shipped_recipes())
        raise ConfigError(
            f"no recipe '{name_or_path}': expected a path to a .toml file or one of {names}"
        )
    if path.stat().st_size > 1_000_000:
        raise ConfigError(f"recipe '{path}' is larger than 1 MB: that is no recipe")
    try:
        return str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe '{path}' cannot be read as UTF-8 text: {error}: save it as UTF-8"
        ) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, raw = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override '{override}' must look like stage.key=value")
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"override '{override}': `{part}` is a value, not a section: give {part}=VALUE"
            )
    table[parts[-1]] = value


def _crop_faults(values: dict[str, Any], kind: type[Recipe]) -> Iterable[str]:
    """Crops whose corner cells would not lie on corner pixels.

    On the unchecked values, because a validator of the whole recipe is not asked while any other
    value is at fault; sections that the method does not have are told as such, elsewhere.
    """
    if _value(values, "cam", "align") != "corners":
        return
    shared = _value(values, "backbone", "output_stride") or 8
    sections = [name for name in values if name in kind.model_fields]
    for name in (name for name in sections if _value(values, name, "train") is not None):
        stride = (name != "cam" and _value(values, name, "output_stride")) or shared
        size = _value(values, name, "train", "augmentation", "crop_size") or 448
        if isinstance(size, int) and stride in (8, 16, 32) and (size - 1) % stride:
            yield (
                f"{name}.train.augmentation.crop_size is {size}, must be k * {stride} + 1 under "
                f"cam.align = 'corners', for example {round((size - 1) / stride) * stride + 1}"
            )


def _start_faults(values: dict[str, Any]) -> Iterable[str]:
    """A frozen backbone that nothing has trained; on the unchecked values, as above."""
    start = _value(values, "irnet", "start") or "weights"
    from_scratch = _value(values, "backbone", "from_scratch") is True
    if values["method"] == "irnet" and from_scratch and start == "weights":
        yield (
            "irnet.start is 'weights', but the backbone starts from scratch and IRNet does not "
            "train it: set irnet.start=classifier"
        )


def _value(values: Any, *keys: str) -> Any:
    """Value at a path of keys; None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _describe_faults(error: ValidationError, kind: type[Recipe]) -> Iterable[str]:
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{place} is no key of this recipe{_suggestion(fault['loc'], kind)}"
        elif fault["type"] == "missing":
            yield f"{place} is missing"
        else:
            yield fault_text(place, fault)


def _suggestion(place: tuple[int | str, ...], kind: type[Recipe]) -> str:
    """The key that was probably meant, if one of that section reads alike."""
    section: Any = kind
    for part in place[:-1]:  # only sections refuse a key
        section = section.model_fields[part].annotation
    close = get_close_matches(str(place[-1]), section.model_fields, 1)
    return f", expected {'.'.join([*map(str, place[:-1]), close[0]])}" if close else ""


def _dump_table(table: dict[str, Any], path: tuple[str, ...]) -> str:
    lines = [f"[{'.'.join(path)}]"] if path else []
    lines += [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
        if not isinstance(value, dict)
    ]
    blocks = ["\n".join(lines) + "\n"] if lines else []
    for key, value in table.items():
        if isinstance(value, dict):
            blocks.append(_dump_table(value, (*path, key)))
    return "\n".join(blocks)
