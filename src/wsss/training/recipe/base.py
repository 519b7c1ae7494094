"""What all sections of recipes are, and the ranges that their keys share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ..backbones.build import BACKBONES, output_strides


@dataclass(frozen=True)
class OneOf:
    """A validator of values that a registry lists when a recipe is read.

    Attributes:
        choices: returns the values, in the order in which messages and documentation name them.
    """

    choices: Callable[[], Iterable[str | int]]

    def __call__(self, value: str | int) -> str | int:
        """The value itself if it is listed."""
        known = list(self.choices())
        if value not in known:
            raise PydanticCustomError("one_of", "Input should be {known}", {"known": either(known)})
        return value


def either(choices: Iterable[str | int]) -> str:
    """Choices as text: 8, 16 or 32."""
    *others, last = [repr(choice) for choice in choices]
    return f"{', '.join(others)} or {last}" if others else last


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
BackboneName = Annotated[str, AfterValidator(OneOf(lambda: BACKBONES))]
BackboneStride = Annotated[int, AfterValidator(OneOf(output_strides))]
"""A stride of any backbone; `recipes` checks that it is one of the recipe's own."""
Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
