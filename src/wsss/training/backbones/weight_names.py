"""How weights from elsewhere name the layers of our backbones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from .backbone import Backbone

Value = TypeVar("Value")

COUNTER = "num_batches_tracked"
"""Buffer of `nn.BatchNorm2d` that frozen normalisation has no use for."""

_OWN_CHECKPOINT = "backbone."
_WRAPPER = "module."


@dataclass(frozen=True)
class Translated(Generic[Value]):
    """Entries of a file under our names.

    Attributes:
        entries: our name -> (name in the file, value); may hold names that no layer has.
        head: names in the file that belong to the classification head or to other networks.
        duplicates: names in the file of layers that another entry names as well.
    """

    entries: dict[str, tuple[str, Value]]
    head: list[str]
    duplicates: list[str]


def translate(kind: type[Backbone], named: Mapping[str, Value]) -> Translated[Value]:
    """Rename the entries of a file for one of our backbones, by its `own_name`.

    Of a checkpoint of ours the backbone is taken.
    """
    heads = tuple(f"{part}." for part in kind.head_names)
    is_checkpoint = any(unwrapped(name).startswith(_OWN_CHECKPOINT) for name in named)
    found: Translated[Value] = Translated({}, [], [])
    for name, value in named.items():
        layer = unwrapped(name)
        own = kind.own_name(layer.removeprefix(_OWN_CHECKPOINT))
        if name.endswith(f".{COUNTER}"):
            continue
        if own.startswith(heads) or (is_checkpoint and not layer.startswith(_OWN_CHECKPOINT)):
            found.head.append(name)
        elif own in found.entries:
            found.duplicates.append(name)
        else:
            found.entries[own] = (name, value)
    return found


def unwrapped(name: str) -> str:
    """A layer's name without what data-parallel wrappers put before it."""
    return name.removeprefix(_WRAPPER)
