"""What only this method has."""

from typing import Annotated, Literal

from pydantic import Field

from ...recipe.recipe import Recipe
from ...recipe.sections import Section


class FocalSection(Section):
    """The loss of the classifier."""

    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """How much less the classes count that are recognised already; 0 is cross entropy."""


class FocalRecipe(Recipe):
    """A whole run."""

    method: Literal["focal"]
    focal: FocalSection = FocalSection()
