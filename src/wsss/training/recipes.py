"""Recipes by name or path: every hyper-parameter of every stage, checked before any work starts.

A recipe is a TOML file; its sections are the stages in the order of the method. Shipped recipes
are in `wsss/recipes` and are found by name. The method named in a recipe decides its schema.
"""

import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import ConfigError, fault_text
from .backbones.build import BACKBONES, output_strides
from .methods import METHODS, open_method
from .recipe.recipe import Recipe, value_at
from .recipe.sections import BackboneSection, either

DEFAULT_STRIDE: int = BackboneSection.model_fields["output_stride"].default


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
    if method not in METHODS:
        found = "missing" if method is None else repr(method)
        methods = " or ".join(repr(name) for name in METHODS)
        raise ConfigError(f"recipe '{label}': method is {found}, must be {methods}")
    kind = open_method(method).recipe
    faults = [*_stride_faults(values), *_crop_faults(values, kind), *kind.faults(values)]
    try:
        recipe = kind.model_validate(values)
    except ValidationError as error:
        faults = [*_describe_faults(error, kind), *faults]
    if faults:
        raise ConfigError(f"recipe '{label}': {'; '.join(faults)}")
    return recipe


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


def _stride_faults(values: dict[str, Any]) -> Iterable[str]:
    """Strides that other backbones have, but not the recipe's own.

    On the unchecked values, as `_crop_faults`.
    """
    name = value_at(values, "backbone", "name")
    if not isinstance(name, str) or name not in BACKBONES:
        return
    own = BACKBONES[name].output_strides
    for section in values:
        stride = value_at(values, section, "output_stride")
        if section == "backbone" and stride is None:
            stride = DEFAULT_STRIDE
        if stride in output_strides() and stride not in own:
            yield (
                f"{section}.output_stride is {stride}, must be {either(sorted(own))} for backbone "
                f"`{name}`"
            )


def _crop_faults(values: dict[str, Any], kind: type[Recipe]) -> Iterable[str]:
    """Crops whose corner cells, of maps or of labels, would not be at corner pixels.

    On the unchecked values, because a validator of the whole recipe is not asked while any other
    value is at fault; sections that the method does not have are reported as such, elsewhere.
    """
    if value_at(values, "cam", "align") != "corners":
        return
    shared = value_at(values, "backbone", "output_stride") or DEFAULT_STRIDE
    sections = [name for name in values if name in kind.model_fields]
    for name in (name for name in sections if value_at(values, name, "train") is not None):
        stride = (name != "cam" and value_at(values, name, "output_stride")) or shared
        size = value_at(values, name, "train", "augmentation", "crop_size") or 448
        if isinstance(size, int) and stride in output_strides() and (size - 1) % stride:
            yield (
                f"{name}.train.augmentation.crop_size is {size}, must be k * {stride} + 1 under "
                f"cam.align = 'corners', for example {round((size - 1) / stride) * stride + 1}"
            )
            continue
        cells = value_at(values, name, "label_stride")
        if cells is None and "label_stride" in _fields(kind, name):
            cells = _fields(kind, name)["label_stride"].default
        if type(size) is int and type(cells) is int and 1 <= cells <= 32 and (size - 1) % cells:
            yield (
                f"{name}.label_stride is {cells}, must divide {size - 1} under cam.align = "
                f"'corners', one less than {name}.train.augmentation.crop_size"
            )


def _fields(kind: type[Recipe], section: str) -> dict[str, FieldInfo]:
    inner: Any = kind.model_fields[section].annotation
    fields: dict[str, FieldInfo] = inner.model_fields
    return fields


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
