"""Which form walks, and the compiled CPU form against the dense float64 walk."""

import sys

import reference
import torch
from all_pairs import all_pairs
from pytest import importorskip, mark, raises

from wsss.errors import ConfigError, MissingDependencyError
from wsss.runtime.refine import random_walk as propagation
from wsss.runtime.refine.fast.walk_torch import FlatWalk
from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.random_walk import choose_form, propagate

SIZES = [(1, 1), (1, 13), (11, 1), (2, 3), (5, 9), (12, 17)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@mark.parametrize(("size", "maps", "steps"), all_pairs(SIZES, [1, 2, 3, 5], [1, 2, 7, 256]))
def test_the_native_walk_equals_the_dense_power(size, maps, steps):
    importorskip("numba")
    affinity = reference.random_affinity(generator(), 2, *size)
    scores = torch.rand(2, maps, *size, generator=generator(1))
    expected = reference.walk_batch(scores, affinity, 5, steps)
    for method, tolerance in (("power", 1e-4), ("chebyshev", 1e-6)):
        walked = propagate(
            scores,
            affinity.float(),
            steps=steps,
            method=method,
            tolerance=tolerance,
            form="native",
        )
        torch.testing.assert_close(walked.double(), expected, rtol=0, atol=2e-5)


@mark.parametrize("radius", [2, 3, 10])
def test_the_native_walk_of_other_radii(radius):
    importorskip("numba")
    affinity = reference.random_affinity(generator(), 1, 8, 14, radius=radius)
    scores = torch.rand(1, 2, 8, 14, generator=generator(1))
    walked = propagate(scores, affinity.float(), radius=radius, steps=40, form="native")
    expected = reference.walk_batch(scores, affinity, radius, 40)
    torch.testing.assert_close(walked.double(), expected, rtol=0, atol=1e-4)


def test_threads_and_blocks_do_not_change_a_bit(monkeypatch):
    """More cells than a block, maps apart and together, one thread and three."""
    native = importorskip("wsss.runtime.refine.fast.walk_numba")
    affinity = torch.rand(2, 34, 70, 80, generator=generator()) ** 3
    scores = torch.rand(2, 3, 70, 80, generator=generator(1))
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(native.NativeWalk(scores, affinity, PairOffsets(5)).power(9))
    assert torch.equal(*results)
    flat = FlatWalk(scores, affinity, PairOffsets(5)).power(9)
    torch.testing.assert_close(results[0], flat, rtol=0, atol=1e-6)


def test_pairs_that_leave_the_grid_are_not_read():
    importorskip("numba")
    affinity = reference.random_affinity(generator(), 1, 6, 7).float()
    stray = torch.where(affinity == 0, 0.7, affinity)
    scores = torch.rand(1, 2, 6, 7, generator=generator(1))
    assert torch.equal(
        propagate(scores, stray, form="native"), propagate(scores, affinity, form="native")
    )


@mark.parametrize("form", ["torch", "native"])
def test_an_exponent_that_underflows_keeps_scores_where_they_are(form):
    if form == "native":
        importorskip("numba")
    affinity = reference.random_affinity(generator(), 1, 12, 9).float() * 0.99
    scores = torch.rand(1, 2, 12, 9, generator=generator(1))
    walked = propagate(scores, affinity**10_000, form=form)
    torch.testing.assert_close(walked, scores, rtol=0, atol=1e-6)


def test_auto_takes_the_compiled_form_where_it_pays():
    importorskip("numba")
    large, small = torch.rand(1, 3, 47, 63), torch.rand(1, 3, 4, 5)
    assert choose_form(large).__name__ == "NativeWalk"
    assert choose_form(small) is FlatWalk
    assert choose_form(large.double()) is FlatWalk


def test_forms_that_do_not_fit_are_refused():
    scores = torch.rand(1, 3, 4, 5)
    with raises(ConfigError, match="unknown `form` 'cuda'"):
        choose_form(scores, "cuda")
    with raises(ConfigError, match="`form` 'fused' walks float32 on a CUDA device; the scores are"):
        choose_form(scores, "fused")
    with raises(ConfigError, match=r"`form` 'native' walks float32 on a CPU; .*float64"):
        choose_form(scores.double(), "native")


def test_a_package_that_does_not_work_is_said_once_and_walked_around(monkeypatch, caplog):
    """numba under a numpy it does not know: installed, and an ImportError when imported."""
    monkeypatch.setitem(sys.modules, "wsss.runtime.refine.fast.walk_numba", None)
    propagation._load_form.cache_clear()
    scores = torch.rand(1, 3, 47, 63)
    assert choose_form(scores) is choose_form(scores) is FlatWalk
    assert len([r for r in caplog.records if "walking in plain torch" in r.message]) == 1
    with raises(MissingDependencyError, match="'native' cannot be used: numba is installed but"):
        choose_form(scores, "native")
    propagation._load_form.cache_clear()
