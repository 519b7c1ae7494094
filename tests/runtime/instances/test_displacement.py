import instance_reference
import numpy as np
import torch
from all_pairs import all_pairs
from hypothesis import given
from hypothesis import strategies as st
from pytest import importorskip, mark, raises

from wsss.errors import ConfigError, DataError, MissingDependencyError, ShapeError
from wsss.runtime.instances import displacement
from wsss.runtime.instances.displacement import refine_centroids

SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (9, 14)]
FORMS = ["torch", "native"]


def choose(form):
    if form == "native":
        importorskip("numba")
    return form


def random_field(batch, height, width, *, strength=3.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return strength * torch.randn(batch, 2, height, width, generator=generator, dtype=dtype)


def pulling_field(batch, height, width, *, seed=0, dtype=torch.float64):
    """Towards one point an image, a little wrong everywhere: cells settle from all sides."""
    generator = torch.Generator().manual_seed(seed)
    share = 0.2 + 0.6 * torch.rand(batch, 2, 1, 1, generator=generator, dtype=dtype)
    goal = share * torch.tensor([height - 1, width - 1], dtype=dtype).view(2, 1, 1)
    cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    noise = torch.randn(batch, 2, height, width, generator=generator, dtype=dtype)
    return 0.6 * (goal - cells) + 0.1 * noise


def without_rest(monkeypatch, field, steps):
    """Every cell moved for all steps."""
    with monkeypatch.context() as patch:
        patch.setattr(displacement, "ROUND_TRIP", steps + 1)
        return refine_centroids(field, steps=steps, form="torch")


@mark.parametrize(("size", "steps", "form"), all_pairs(SIZES, [0, 1, 2, 7, 15], FORMS))
def test_wild_fields_equal_naive_loops(size, steps, form):
    field = random_field(2, *size)
    found = refine_centroids(field, steps=steps, form=choose(form))
    expected = [instance_reference.refine(image.numpy(), steps).round() for image in field]
    assert np.array_equal(found.numpy(), np.stack(expected))


@mark.parametrize("form", FORMS)
@mark.parametrize("size", SIZES)
def test_published_number_of_steps_equals_naive_loops(size, form):
    field = pulling_field(2, *size)
    found = refine_centroids(field, form=choose(form))
    expected = [instance_reference.refine(image.numpy(), 300).round() for image in field]
    assert np.array_equal(found.numpy(), np.stack(expected))
    in_single = refine_centroids(field.float(), form=form)
    assert torch.equal(in_single, found)  # no centroid lies half way between two cells


def test_bilinear_step_by_hand():
    # Along a row: the first step leads half way between the cells 1 and 2, whose fields differ.
    field = torch.zeros(1, 2, 1, 5)
    field[0, 1, 0] = torch.tensor([1.5, 0.0, 2.0, 0.0, 0.0])
    assert refine_centroids(field, steps=1)[0, 1, 0, 0] == 2  # 1.5, the even one
    assert refine_centroids(field, steps=2)[0, 1, 0, 0] == 2  # 1.5 + (0 + 2) / 2 = 2.5
    assert refine_centroids(field, steps=3)[0, 1, 0, 0] == 4  # 2.5 + (2 + 0) / 2 = 3.5


def test_positions_are_clipped_to_the_grid():
    field = torch.full((1, 2, 3, 4), 1e30)
    assert refine_centroids(field).unique(dim=3).flatten().tolist() == [2] * 3 + [3] * 3
    assert not refine_centroids(-field).any()


@mark.parametrize("dtype", [torch.float32, torch.float64])
@mark.parametrize("strength", [0.3, 3.0, 30.0])
def test_both_forms_give_the_same_bits(strength, dtype):
    importorskip("numba")
    field = random_field(2, 37, 23, strength=strength, dtype=dtype)
    sizes = [(37, 23), (18, 20)]
    one, other = (
        refine(field, sizes, 300)
        for refine in (displacement._refine_in_torch, displacement._load_native())
    )
    assert torch.equal(one, other)


@mark.parametrize(
    ("kind", "steps", "form"),
    all_pairs(["pulling", "wild"], [0, 1, 11, 12, 13, 24, 299, 300], FORMS),
)
def test_resting_cells_change_no_result(kind, steps, form, monkeypatch):
    make = pulling_field if kind == "pulling" else random_field
    field = make(3, 21, 17, dtype=torch.float32)
    expected = without_rest(monkeypatch, field, steps)
    assert torch.equal(refine_centroids(field, steps=steps, form=choose(form)), expected)


@mark.parametrize("form", FORMS)
@mark.parametrize("length", [2, 3, 5, 12])
def test_cycles_end_where_the_steps_end(length, form):
    field = torch.zeros(1, 2, 1, length)
    field[0, 1, 0] = 1.0
    field[0, 1, 0, -1] = 1.0 - length  # from the last cell back to the first
    for steps in (0, 1, 12, 35, 300, 301):
        found = refine_centroids(field, steps=steps, form=choose(form))[0, 1, 0]
        assert found.tolist() == [(cell + steps) % length for cell in range(length)]


@mark.parametrize("form", FORMS)
def test_companions_and_padding_have_no_influence(form):
    sizes = [(9, 14), (1, 1), (12, 5), (7, 14)]
    fields = [random_field(1, *size, seed=size[1], dtype=torch.float32)[0] for size in sizes]
    padded = random_field(4, 12, 14, strength=1e4, dtype=torch.float32)
    for image, field, (rows, columns) in zip(padded, fields, sizes, strict=True):
        image[:, :rows, :columns] = field
    together = refine_centroids(padded, sizes=sizes, form=choose(form))
    turned = refine_centroids(padded.flip(0), sizes=sizes[::-1], form=form).flip(0)
    assert torch.equal(together, turned)
    for found, field, (rows, columns) in zip(together, fields, sizes, strict=True):
        assert torch.equal(found[:, :rows, :columns], refine_centroids(field[None], form=form)[0])
        assert (
            found[:, rows:, :]
            .flatten(1)
            .equal(
                torch.stack(
                    torch.meshgrid(torch.arange(rows, 12), torch.arange(14), indexing="ij")
                ).flatten(1)
            )
        )


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    steps=st.integers(0, 40),
    strength=st.floats(0, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_centroids_lie_on_the_grid_and_repeat(height, width, steps, strength, seed):
    field = random_field(1, height, width, strength=strength, seed=seed, dtype=torch.float32)
    found = refine_centroids(field, steps=steps)
    assert found.shape == field.shape and found.dtype == torch.int64
    assert bool((found >= 0).all())
    assert bool((found[:, 0] < height).all() and (found[:, 1] < width).all())
    assert torch.equal(found, refine_centroids(field.clone(), steps=steps))


@mark.parametrize("axis", [0, 1])
@mark.parametrize("seed", range(4))
def test_a_mirrored_field_gives_mirrored_centroids(axis, seed):
    field = pulling_field(1, 11, 16, seed=seed)
    mirrored = field.flip(2 + axis).clone()
    mirrored[:, axis] *= -1
    expected = refine_centroids(field).flip(2 + axis)
    expected[:, axis] = field.shape[2 + axis] - 1 - expected[:, axis]
    assert torch.equal(refine_centroids(mirrored), expected)


@mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    field = pulling_field(1, 8, 9).to(dtype)
    assert torch.equal(refine_centroids(field), refine_centroids(field.float()))


def test_an_empty_batch_gives_an_empty_result():
    assert refine_centroids(torch.zeros(0, 2, 4, 5)).shape == (0, 2, 4, 5)


def test_wrong_input_is_refused(monkeypatch):
    field = torch.zeros(2, 2, 4, 5)
    with raises(ShapeError, match=r"\(2, 4, 5\), expected \(B, 2, h, w\).*unsqueeze"):
        refine_centroids(field[0])
    with raises(ShapeError, match=r"is \(2, 3, 4, 5\), expected \(B, 2, h, w\)"):
        refine_centroids(torch.zeros(2, 3, 4, 5))
    with raises(DataError, match=r"torch\.int64, expected floating point"):
        refine_centroids(field.long())
    with raises(DataError, match="NaN or infinity"):
        refine_centroids(field / 0)
    with raises(ConfigError, match="`steps` is -1, must be a whole number >= 0"):
        refine_centroids(field, steps=-1)
    with raises(ConfigError, match="unknown `form` 'numba': choose one of auto, torch, native"):
        refine_centroids(field, form="numba")
    with raises(ShapeError, match="2 images have 1 `sizes`: give one each"):
        refine_centroids(field, sizes=[(4, 5)])
    with raises(ShapeError, match="image 1: size 4 x 6 does not fit in the batch's 4 x 5 cells"):
        refine_centroids(field, sizes=[(4, 5), (4, 6)])
    monkeypatch.setattr(displacement, "_load_native", lambda: None)
    with raises(MissingDependencyError, match=r"numba is not installed.*choose torch"):
        refine_centroids(field, form="native")
    assert refine_centroids(torch.zeros(1, 2, 50, 50)).shape == (1, 2, 50, 50)
