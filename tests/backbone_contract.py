"""What every backbone must do; a new one inherits this and names its figures."""

import math

import pytest
import torch

from wsss.errors import ConfigError
from wsss.training.backbones.backbone import Normalisation
from wsss.training.backbones.build import build_backbone
from wsss.training.backbones.parameters import parameter_groups

SIZES = ((1, 1), (33, 47), (64, 96))


def relative_error(found, expected):
    """Largest difference as a fraction of the largest expected value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def random_image(size, batch=1):
    """(batch, 3, H, W) RGB in 0..255."""
    return 255 * torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(5))


class BackboneContract:
    """Fields: `name`; `strides` from the default on; `taps` as (tap, channels, stride in a
    network without dilation); `frozen_example`, a parameter frozen by default, if any;
    `normalisation`; `num_stored`, weights, biases and statistics taken together."""

    name = ""
    strides = ()
    taps = ()
    frozen_example = None
    normalisation = None
    num_stored = 0

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls):
        torch.manual_seed(3)
        return build_backbone(cls.name).eval()

    def meta(self, output_stride=None):
        with torch.device("meta"):
            return build_backbone(self.name, output_stride)

    def test_number_of_stored_values(self):
        assert sum(t.numel() for t in self.meta().state_dict().values()) == self.num_stored

    @pytest.mark.parametrize("size", SIZES)
    def test_taps_have_ceil_of_side_by_stride_cells(self, size):
        for output_stride in self.strides:
            backbone = self.meta(output_stride)
            maps = backbone(torch.empty(2, 3, *size, device="meta"))
            assert list(maps) == [tap for tap, _, _ in self.taps]
            for tap, channels, full_stride in self.taps:
                stride = min(full_stride, output_stride)
                cells = [math.ceil(side / stride) for side in size]
                assert maps[tap].shape == (2, channels, *cells), (tap, output_stride)
                assert backbone.tap_channels[tap] == channels
                assert backbone.tap_strides[tap] == stride

    def test_describes_itself(self):
        backbone = self.meta()
        assert backbone.name == self.name
        assert backbone.output_strides[0] == backbone.output_stride == self.strides[0]
        assert set(backbone.output_strides) == set(self.strides)
        assert (backbone.final_tap, backbone.out_channels) == self.taps[-1][:2]
        assert backbone.boundary_taps == () or len(backbone.boundary_taps) == 5
        affinity_strides = [backbone.tap_strides[tap] for tap in backbone.affinity_taps]
        assert affinity_strides == sorted(affinity_strides) and len(affinity_strides) == 3
        boundary_strides = [backbone.tap_strides[tap] for tap in backbone.boundary_taps]
        assert boundary_strides == sorted(boundary_strides)
        assert boundary_strides[1:3] == [4, 8][: len(boundary_strides)]

    def test_weights_serve_every_output_stride(self):
        shapes = [
            {name: tensor.shape for name, tensor in self.meta(stride).state_dict().items()}
            for stride in self.strides
        ]
        assert all(other == shapes[0] for other in shapes)

    def test_other_strides_are_refused(self):
        message = f"`{self.name}` has no output stride 3: choose of {min(self.strides)}"
        with pytest.raises(ConfigError, match=message):
            build_backbone(self.name, 3)

    def test_normalisation(self):
        expected = self.meta().normalisation
        assert expected == self.normalisation
        assert Normalisation.from_dict(expected.to_dict()) == expected

    def test_its_own_names_need_no_translation(self):
        backbone = self.meta()
        names = list(backbone.state_dict())
        assert [backbone.own_name(name) for name in names] == names
        assert backbone.layers_that_stay_new(names) == ()
        assert backbone.published_normalisation(backbone.state_dict()) == self.normalisation
        heads = tuple(f"{head}." for head in backbone.head_names)
        assert not [name for name in names if name.startswith(heads)]

    def test_the_field_of_view_is_set_where_there_is_one(self):
        backbone = self.meta()
        backbone.set_field_of_view(1)
        near = repr(backbone)
        backbone.set_field_of_view(12)
        assert (repr(backbone) != near) == backbone.has_field_of_view

    @torch.no_grad()
    def test_takes_raw_pixels(self, backbone):
        """RGB in 0..255, uint8 or float; its rule of normalisation is no part of its weights."""
        pixels = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
        inside = torch.ones(2, 1, 33, 47, dtype=torch.bool)
        inside[0, :, 20:] = False
        normalised = self.normalisation.apply(pixels)
        normalised[0, :, 20:] = 0  # the mean colour
        expected = backbone.forward_normalised(normalised)
        for given in (pixels, pixels.float()):
            found = backbone(given, inside)
            assert all(torch.equal(found[tap], expected[tap]) for tap in expected)
        assert not [name for name in backbone.state_dict() if name.startswith("normaliser")]

    def test_everything_is_new_until_weights_are_loaded(self):
        backbone = self.meta()
        assert self.group_names(backbone) <= {"new_weights", "new_biases"}
        backbone.mark_pretrained()
        assert self.group_names(backbone) <= {"pretrained_weights", "pretrained_biases"}

    def group_names(self, backbone):
        groups = parameter_groups(backbone)
        grouped = [id(parameter) for group in groups.values() for parameter in group]
        assert sorted(grouped) == sorted(map(id, backbone.parameters()))
        return {name for name, group in groups.items() if group}

    def test_freezes_nothing_defaults_or_prefixes(self):
        backbone = self.meta()
        everything = {name for name, _ in backbone.named_parameters()}
        backbone.freeze(())
        assert self.trainable(backbone) == everything
        first_layer = next(iter(everything)).split(".")[0]
        backbone.freeze([first_layer])
        assert self.trainable(backbone) == {
            name for name in everything if name.split(".")[0] != first_layer
        }
        with pytest.raises(ConfigError, match=f"`{self.name}` has no layer `con`"):
            backbone.freeze(["con"])

        by_default = self.meta()
        by_default.freeze()
        frozen = everything - self.trainable(by_default)
        assert frozen == {
            name
            for name in everything
            if any(name == p or name.startswith(f"{p}.") for p in by_default.default_frozen)
        }
        assert (self.frozen_example in frozen) if self.frozen_example else not frozen

    def trainable(self, backbone):
        return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}

    def test_gradient_reaches_what_is_trainable_and_nothing_else(self, backbone):
        backbone.freeze()
        maps = backbone(random_image((33, 40)))
        sum(features.square().mean() for features in maps.values()).backward()
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                assert torch.isfinite(parameter.grad).all(), name
                assert parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name
        backbone.zero_grad(set_to_none=True)

    @torch.no_grad()
    def test_state_dict_carries_the_whole_network(self, backbone):
        other = self.meta().eval()
        other.load_state_dict(backbone.state_dict(), assign=True)
        image = random_image((19, 34))
        expected, found = backbone(image), other(image)
        for tap, _, _ in self.taps:
            assert torch.equal(found[tap], expected[tap])

    @torch.no_grad()
    def test_an_image_does_not_depend_on_its_batch(self, backbone):
        images = random_image((19, 34), batch=2)
        images[1] *= 50
        alone, together = backbone(images[:1]), backbone(images)
        for tap, _, _ in self.taps:
            assert relative_error(together[tap][:1], alone[tap]) < 1e-4


class DilationContract(BackboneContract):
    """For networks that are convolutions only: a stride turned into dilation computes the same
    values, on a denser grid."""

    @torch.no_grad()
    def test_dilation_refines_the_grid_of_the_coarser_network(self, backbone):
        image = random_image((49, 66))
        features = {}
        for output_stride in self.strides:
            network = self.meta(output_stride).eval()
            network.load_state_dict(backbone.state_dict(), assign=True)
            network.set_field_of_view(12)
            features[output_stride] = network(image)[network.final_tap]
        finest = min(self.strides)
        for output_stride in self.strides:
            step = output_stride // finest
            sampled = features[finest][..., ::step, ::step]
            assert relative_error(sampled, features[output_stride]) < 1e-4
