"""The Triton walk in its interpreter, in the compiler, and on a GPU where there is one.

Interpreter and compiler get a process of their own, which runs this file as a script: Triton
decides between the two once, when it is imported.
"""

import itertools
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import reference
import torch
from pytest import mark

from wsss.runtime.refine.fast import walk_triton as fused
from wsss.runtime.refine.fast.walk_torch import FlatWalk
from wsss.runtime.refine.fast.walk_triton import FusedWalk
from wsss.runtime.refine.pairs import PairOffsets
from wsss.runtime.refine.random_walk import chebyshev_coefficients

SIZES = [(1, 1), (1, 13), (2, 3), (5, 9), (12, 17)]
# The interpreter takes 0.1 s for 34 planes of one block: few steps, and not all combinations.
INTERPRETED = [
    # size, batch, maps, radius, dtype
    ((1, 1), 1, 3, 5, torch.float32),
    ((1, 1), 3, 1, 3, torch.float64),
    ((1, 13), 1, 5, 5, torch.float32),
    ((1, 13), 3, 3, 3, torch.float64),
    ((2, 3), 1, 3, 5, torch.float64),
    ((2, 3), 3, 1, 3, torch.float32),
    ((5, 9), 1, 1, 5, torch.float32),
    ((5, 9), 3, 5, 3, torch.float32),
    ((5, 9), 1, 9, 3, torch.float64),  # more maps than share one reading of the weights
    ((12, 17), 1, 3, 5, torch.float64),
    ((12, 17), 3, 5, 3, torch.float32),  # several blocks an image
]

triton_installed = mark.skipif(find_spec("triton") is None, reason="needs triton")


def check_walk(device, size, batch, maps, radius, dtype):
    generator = torch.Generator().manual_seed(0)
    affinity = reference.random_affinity(generator, batch, *size, radius=radius)
    scores = torch.rand(batch, maps, *size, generator=generator, dtype=torch.float64).to(dtype)
    powers = [reference.walk_batch(scores, affinity, radius, steps) for steps in range(4)]
    stray = affinity.masked_fill(affinity == 0, math.nan)  # no pair: must not be read
    arguments = scores.to(device), stray.to(device), PairOffsets(radius)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 2e-6}

    walk = FusedWalk(*arguments)
    powered = walk.power(2)
    assert powered.dtype == dtype and powered.shape == scores.shape
    torch.testing.assert_close(powered.cpu().double(), powers[2], **tolerance)
    # T_3(t) = 4 t^3 - 3 t, and T_2 without a share, as every other one in the power.
    polynomial = walk.polynomial((0.3, -0.2, 0.0, 0.9)).cpu().double()
    expected = 0.3 * powers[0] - (0.2 + 2.7) * powers[1] + 3.6 * powers[3]
    torch.testing.assert_close(polynomial, expected, **tolerance)
    assert torch.equal(arguments[0].cpu(), scores)


def check_constants(device):
    affinity = reference.random_affinity(torch.Generator().manual_seed(1), 1, 6, 7, radius=3)
    scores = torch.tensor([0.0, 0.3, 1.0]).view(1, 3, 1, 1).expand(1, 3, 6, 7)
    walk = FusedWalk(scores.to(device), affinity.to(device), PairOffsets(3))
    coefficients = chebyshev_coefficients(40, 0.5, radius=3)
    for walked in (walk.power(9), walk.polynomial(coefficients)):
        torch.testing.assert_close(walked.cpu(), scores, rtol=0, atol=1e-6)


def check_no_steps(device):
    scores = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).to(device)
    walk = FusedWalk(scores, torch.zeros(2, 12, 4, 5, device=device), PairOffsets(3))
    assert torch.equal(walk.power(0), scores)
    assert torch.equal(walk.polynomial((0.5,)), 0.5 * scores)


def check_interpreter():
    assert fused.is_available()
    for case in INTERPRETED:
        print(*case, flush=True)
        check_walk("cpu", *case)
    check_constants("cpu")
    check_no_steps("cpu")


def check_compiler():
    """Compile for a GPU that need not be there; what the interpreter lets pass stops here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = fused._compiled_step()
    constants = {"PLANES": 34, "MAPS": 4, "BLOCK": 128}
    # (state, weights): the walk, and its degrees.
    for state, weights in (("fp32", "fp32"), ("fp64", "fp32")):
        types = dict.fromkeys(("current", "older", "result", "inverse_degrees"), f"*{state}")
        types |= {"weights": f"*{weights}", "offsets": "*i32"}
        types |= dict.fromkeys(("height", "width", "num_maps"), "i32")
        types |= {"factor": "fp32", "coefficient": "fp64"} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}
        )
        # Maps share the registers of one thread; shared memory would mean a barrier each pair.
        assert compiled.asm["cubin"] and "bar.sync" not in compiled.asm["ptx"]


def run_as_script(check, tmp_path, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    kept |= {"PYTHONPATH": str(Path(reference.__file__).parent), "OMP_NUM_THREADS": "1"}
    kept |= {"TRITON_CACHE_DIR": str(tmp_path)} | environment
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, check], env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@mark.slow
@triton_installed
def test_interpreted_walk_equals_the_dense_power(tmp_path):
    run_as_script("check_interpreter", tmp_path, TRITON_INTERPRET="1")


@triton_installed
def test_kernel_compiles_for_a_gpu(tmp_path):
    run_as_script("check_compiler", tmp_path)


def test_triton_is_not_loaded_before_the_first_walk():
    code = (
        "import sys\n"
        "import wsss.runtime.refine.random_walk\n"
        "from wsss.runtime.refine.fast import walk_triton as fused\n"
        "fused.is_available()\n"
        "assert 'triton' not in sys.modules\n"
        "fused.find_spec = lambda name: None\n"
        "assert not fused.is_available()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@mark.gpu
@mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@triton_installed
class TestOnAGpu:
    @mark.parametrize("size", SIZES)
    def test_walk_equals_the_dense_power(self, size):
        for batch, maps, radius, dtype in itertools.product(
            (1, 3), (1, 3, 5, 9), (3, 5), (torch.float32, torch.float64)
        ):
            check_walk("cuda", size, batch, maps, radius, dtype)

    def test_constants_and_no_steps(self):
        check_constants("cuda")
        check_no_steps("cuda")

    @mark.parametrize("size", [(47, 63), (94, 125)])
    def test_long_walk_equals_the_plain_one_in_float64(self, size):
        generator = torch.Generator().manual_seed(3)
        affinity = torch.rand(8, 34, *size, generator=generator) ** 4
        scores = torch.rand(8, 3, *size, generator=generator)
        coefficients = chebyshev_coefficients(256, 1e-5)
        pairs = PairOffsets(5)
        expected = FlatWalk(scores.double(), affinity.double(), pairs).power(256)
        walk = FusedWalk(scores.cuda(), affinity.cuda(), pairs)
        for walked in (walk.power(256), walk.polynomial(coefficients)):
            torch.testing.assert_close(walked.cpu().double(), expected, rtol=0, atol=1e-4)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
