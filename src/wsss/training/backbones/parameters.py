"""Which parameters are new, and the four groups an optimiser treats differently.

The released AffinityNet code trains pretrained layers at the base rate, biases at twice that
without decay, and new layers at ten times these (Ahn and Kwak, CVPR 2018, psa). In IRNet the
branch of displacements counts as new, that of boundaries does not, and biases learn as weights.
"""

from torch import nn


def mark_new(module: nn.Module, new: bool = True) -> None:
    """Declare that the module's parameters start from random values, or that they no longer do.

    The mark belongs to the module, so it survives moving to a device and copying.
    """
    for part in module.modules():
        part.__dict__["is_new"] = new


def is_new(module: nn.Module) -> bool:
    """Whether the parameters that the module owns itself start from random values."""
    return bool(module.__dict__.get("is_new", False))


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by origin and kind; each appears once, frozen ones not at all.

    Returns:
        Lists under `pretrained_weights`, `pretrained_biases`, `new_weights` and `new_biases`,
        in the order of the layers; a list may be empty.
    """
    groups: dict[str, list[nn.Parameter]] = {
        f"{origin}_{kind}": [] for origin in ("pretrained", "new") for kind in ("weights", "biases")
    }
    for part in module.modules():
        origin = "new" if is_new(part) else "pretrained"
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                kind = "biases" if name == "bias" else "weights"
                groups[f"{origin}_{kind}"].append(parameter)
    return groups
