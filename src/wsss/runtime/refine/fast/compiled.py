"""Loops compiled by numba, for the few places where no library call does the work."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile once per machine (kept beside the file or in NUMBA_CACHE_DIR), run without the GIL.

    Fused multiply-add is allowed, reordering is not: results depend on no block and no thread.

    Raises:
        RuntimeError: what is compiled can be kept nowhere.
    """
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
    return cast(Function, compile_it(function))


def compiled_exactly(function: Function) -> Function:
    """`compiled` without fused multiply-add: the bits of torch's separate operations."""
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy")
    return cast(Function, compile_it(function))


def compiled_sum(function: Function) -> Function:
    """`compiled`, where a sum may be split into vector lanes; still the same for every call."""
    options = {"contract", "reassoc", "nsz"}
    compile_it: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath=options)
    return cast(Function, compile_it(function))
