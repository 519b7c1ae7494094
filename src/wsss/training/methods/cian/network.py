"""CIAN: a segmenter that looks at its own image, and in training at others of the same class.

Source: Fan, Zhang, Tan, Song and Xiao, "CIAN: Cross-Image Affinity Net for Weakly Supervised
Semantic Segmentation", AAAI 2020, and its released code.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.backbone import Backbone
from ...backbones.parameters import mark_new
from ...engine import distributed
from ..shared.losses import at_least_float32
from ..shared.segmenter_network import Segmenter

CHANNELS = 1024
"""Of queries, keys and values, as published."""
AFFINITY_CELLS = 2**25
"""Affinities that are held at a time when images are labelled by a run: 128 MiB."""
EXPORTED_PARTS = 16
"""Parts of the queries in an exported graph, one after the other: it does not know its sizes."""
_OLD_HEAD = re.compile(r"([1-9][0-9]{0,3}) channels(, no self affinity)?")
"""Arguments in checkpoints of format 1."""


class CrossImageAffinity(nn.Module):
    """Features of each cell, gathered from the cells of an image that are alike.

    Queries, keys and values are 1x1 layers; keys and values are pooled 3x3 with stride 2. A query
    takes the mean of the values under a softmax of its products with the keys, which are not
    divided by the root of the channels. What is gathered goes through a 1x1 layer and a batch
    normalisation whose scale starts at 0, so that at first nothing is added to the features.

    Its running statistics are those of the self branch, which alone is used outside of training;
    where there is none, of the cross branch.

    Args:
        features: channels of the features, F.
        channels: of queries, keys and values, D.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Conv2d(features, channels, 1, bias=False) for _ in range(3)
        )
        self.out = nn.Conv2d(channels, features, 1, bias=False)
        self.norm = WholeBatchNorm2d(features, scale=0.0)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=0.01)
        mark_new(self)

    def forward(self, x: Tensor) -> Tensor:
        """What each cell gathers from its own image, (B, F, h, w) -> same shape."""
        query, key, value = self._project(x)
        return self._added(self._gather(query, key, value), x)

    def across(self, x: Tensor, group_size: int, own: bool) -> tuple[Tensor | None, Tensor]:
        """The same, and what each cell gathers from the images of its group.

        Args:
            x: (B, F, h, w); every `group_size` rows, one after the other, are a group.
            own: whether an image belongs to those it gathers from, else its partners alone.

        Returns:
            (B, F, h, w) from itself, None where it does not belong to them; and (B, F, h, w): the
            element-wise maximum over images before the last layer.
        """
        query, key, value = self._project(x)
        gathered = [self._gather(query, key, value)] if own else []
        from_self = self._added(gathered[0], x) if own else None
        for shift in range(1, group_size):
            partner = [_turned(part, group_size, shift) for part in (key, value)]
            gathered.append(self._gather(query, *partner))
        return from_self, self._added(torch.stack(gathered).amax(0), x, track=not own)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, D, Nq), keys and values (B, D, Nk)."""
        key, value = (F.max_pool2d(layer(x), 3, 2, 1) for layer in (self.key, self.value))
        return self.query(x).flatten(2), key.flatten(2), value.flatten(2)

    def _gather(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, D, Nq): the mean of the values under each query's softmax over the keys.

        In float32 at least: half precision would round the products, which nothing divides, before
        the softmax.
        """
        with _without_autocast(query.device):
            queries, keys, values = (
                at_least_float32(part)
                for part in (query.transpose(1, 2), key, value.transpose(1, 2))
            )
            # (B, Nq, D) @ (B, D, Nk) -> (B, Nq, Nk) @ (B, Nk, D)
            gathered = [
                torch.bmm(torch.softmax(torch.bmm(part, keys), dim=2), values)
                for part in self._parts(queries, keys)
            ]
        return torch.cat(gathered, dim=1)[:, : query.shape[2]].transpose(1, 2).to(value.dtype)

    def _parts(self, queries: Tensor, keys: Tensor) -> Sequence[Tensor]:
        """Queries (B, Nq, D) whose affinities are held at a time; training keeps all of them."""
        if self.training:
            return (queries,)
        count = queries.shape[1]
        if torch.compiler.is_exporting():
            padded = F.pad(queries, (0, 0, 0, -count % EXPORTED_PARTS))
            return padded.reshape(len(padded), EXPORTED_PARTS, -1, padded.shape[2]).unbind(1)
        return torch.split(queries, max(1, AFFINITY_CELLS // (len(keys) * keys.shape[2])), dim=1)

    def _added(self, gathered: Tensor, x: Tensor, track: bool = True) -> Tensor:
        """(B, D, Nq) -> what is added to the features (B, F, h, w)."""
        grid = gathered.reshape(*gathered.shape[:2], *x.shape[2:])
        added: Tensor = self.norm(self.out(grid), track)
        return added


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off where it is on; elsewhere an exported graph is not to see it."""
    known = torch.amp.is_autocast_available(device.type)  # not on the meta device
    if known and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _turned(part: Tensor, group_size: int, shift: int) -> Tensor:
    """(B, D, N) where each row has that of the partner so many places further in its group."""
    groups = part.reshape(-1, group_size, *part.shape[1:])
    return groups.roll(-shift, dims=1).flatten(0, 1)


class CianSegmenter(Segmenter):
    """Segment images with a cross-image affinity module between backbone and classifier.

    The self branch, which is what a segmenter computes, adds what each cell gathers from its own
    image; the cross branch, for training, what it gathers from the images of its group. Both have
    one module and one classifier: 3x3 with dilation 12 (at stride 8), without bias.

    Args:
        backbone: from `build_backbone`; the network uses it, and does not copy it.
        num_classes: C, background not counted.
        channels: number of channels of the module.
        self_affinity: if False, the self branch is the plain segmenter, and the cross branch
            gathers from partners only.
    """

    old_kind = "cian"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        channels: int = CHANNELS,
        self_affinity: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes, head="dilated")
        self.self_affinity = self_affinity
        self.affinity = CrossImageAffinity(backbone.out_channels, channels)

    @classmethod
    def old_arguments(cls, old: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network`."""
        found = _OLD_HEAD.fullmatch(old["head"])
        if found is None:
            raise TypeError(f"unknown head {old['head']!r}, expected such as '1024 channels'")
        return {
            "num_classes": old["num_classes"],
            "channels": int(found[1]),
            "self_affinity": found[2] is None,
        }

    @torch.no_grad()
    def take_classifier(self, weight: Tensor) -> None:
        """Start the middle of the class planes' kernels as the classifier's CAMs.

        Args:
            weight: (C, F, 1, 1) of `CamClassifier.classifier`.
        """
        self.head[-1].get_parameter("weight")[1:, :, 1, 1] = weight[:, :, 0, 0]

    def forward(self, pixels: Tensor, inside: Tensor | None = None, group_size: int = 1) -> Tensor:
        """Compute logits, plane 0 background.

        Args:
            pixels, inside: see `Network`; every `group_size` images share a class.
            group_size: 1: the self branch alone.

        Returns:
            (B, C + 1, h, w) of the self branch; for larger groups (2, B, C + 1, h, w): those of
            the self branch, and those of the cross branch.
        """
        taps = self.backbone(pixels, inside)
        if group_size == 1:
            return self.read(taps)
        features = taps[self.backbone.final_tap]
        from_self, from_group = self.affinity.across(features, group_size, self.self_affinity)
        own = features if from_self is None else features + from_self
        return torch.stack([self.head(own), self.head(features + from_group)])

    def read(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Compute logits (B, C + 1, h, w) of the self branch, plane 0 background."""
        features = taps[self.backbone.final_tap]
        own = features + self.affinity(features) if self.self_affinity else features
        logits: Tensor = self.head(own)
        return logits


class WholeBatchNorm2d(nn.Module):
    """Batch normalisation that gives several processes what one would compute.

    Its tensors have the names of `nn.BatchNorm2d`.

    Args:
        scale: every channel's at the start.
        momentum: share of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, num_features: int, scale: float = 1.0, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.full((num_features,), scale))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        """(B, F, h, w) -> same shape.

        Args:
            track: whether the running statistics follow this batch; while training.
        """
        if self.training and distributed.world_size() > 1:
            return self._over_processes(x, track)
        mean, variance = self.running_mean, self.running_var
        if self.training and not track:  # what then follows the batch is thrown away
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(
            x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _over_processes(self, x: Tensor, track: bool) -> Tensor:
        """Every process has equally many rows of the batch."""
        values = at_least_float32(x)
        count = values.numel() // values.shape[1] * distributed.world_size()
        mean = distributed.sum_with_gradient(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = distributed.sum_with_gradient(centred.square().sum((0, 2, 3))) / count
        if track:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
