"""What the recipes of all methods have in common; each method adds its own sections."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field

from .sections import (
    BackboneSection,
    CamSection,
    DataSection,
    Section,
    SeedsSection,
    SegmenterSection,
    TrainSettings,
    WalkSection,
)


class Training(Protocol):
    """A section of a stage that trains a network."""

    @property
    def train(self) -> TrainSettings: ...


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

    @classmethod
    def faults(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Faults that lie between sections, found in the unchecked values of a recipe.

        A validator of the whole recipe does not run while any other value is at fault.
        """
        return ()

    def trainings(self) -> dict[str, Training]:
        """By stage: sections of those that train a network."""
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: found for name, found in sections.items() if hasattr(found, "train")}


class WalkRecipe(Recipe):
    """A recipe whose pseudo labels come from a random walk on the CAMs."""

    walk: WalkSection = WalkSection()


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def value_at(values: Any, *keys: str) -> Any:
    """Value at a path of keys in unchecked values; None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML, every default written out; `load_recipe` reads it back."""
    return _dump_table(recipe.model_dump(mode="json", exclude_none=True), ())


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
