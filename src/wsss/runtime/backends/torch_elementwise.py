"""Operators that treat every element by itself, and products of matrices."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from .torch_node import Attributes, Compute, Operator, plain

Binary = Callable[[Tensor, Tensor], Tensor]


def _divide(dividend: Tensor, divisor: Tensor) -> Tensor:
    if dividend.is_floating_point():
        return dividend / divisor
    return torch.div(dividend, divisor, rounding_mode="trunc")


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _fold(combine: Binary) -> Compute:
    """One or more inputs, combined from the left."""
    return lambda *values: functools.reduce(combine, values)


def _clip(values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return values if low is None and high is None else torch.clamp(values, low, high)


def _mod(given: Attributes) -> Compute:
    # 0: the sign of the divisor, as in Python; 1: the sign of the dividend, as in C.
    return torch.fmod if given.choose("fmod", 0, 1) else torch.remainder


def _cast(given: Attributes) -> Compute:
    dtype = given.element_type("to", TensorProto.UNDEFINED)
    given.take("saturate", 1)  # concerns float8 only
    return lambda values: values.to(dtype)


def _elu(given: Attributes) -> Compute:
    alpha = given.take("alpha", 1.0)
    return lambda values: F.elu(values, alpha)


def _softmax(given: Attributes) -> Compute:
    axis = given.take("axis", -1)
    return lambda values: torch.softmax(values, axis)


def _gemm(given: Attributes) -> Compute:
    alpha, beta = given.take("alpha", 1.0), given.take("beta", 1.0)
    flip_left, flip_right = given.take("transA", 0), given.take("transB", 0)

    def compute(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        product = (left.T if flip_left else left) @ (right.T if flip_right else right)
        if alpha != 1:
            product = product * alpha
        if bias is None:
            return product
        return product + (bias if beta == 1 else bias * beta)

    return compute


def _quantize(given: Attributes) -> Compute:
    axis = given.take("axis", 1)
    given.take("saturate", 1)  # concerns float8 only

    def compute(values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        dtype = torch.uint8 if zero_point is None else zero_point.dtype
        steps = torch.round(values.float() / _along(scale.float(), values, axis))
        if zero_point is not None:
            steps = steps + _along(zero_point.float(), values, axis)
        limits = torch.iinfo(dtype)
        return steps.clamp(limits.min, limits.max).to(dtype)

    return compute


def _dequantize(given: Attributes) -> Compute:
    axis = given.take("axis", 1)

    def compute(values: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        steps = values.to(torch.int32)
        if zero_point is not None:
            steps = steps - _along(zero_point.to(torch.int32), values, axis)
        return (steps.float() * _along(scale.float(), values, axis)).to(scale.dtype)

    return compute


def _along(parameter: Tensor, values: Tensor, axis: int) -> Tensor:
    """One number for all values, or one for each place along an axis."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * values.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


ELEMENTWISE: dict[str, Operator] = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "Cast": Operator(_cast),
    "Ceil": plain(torch.ceil),
    "Clip": plain(_clip),
    "DequantizeLinear": Operator(_dequantize),
    "Div": plain(_divide),
    "Elu": Operator(_elu),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gemm": Operator(_gemm),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "Identity": plain(lambda values: values),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "MatMul": plain(torch.matmul),
    "Max": plain(_fold(torch.maximum)),
    "Min": plain(_fold(torch.minimum)),
    "Mod": Operator(_mod),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "Pow": plain(_power),
    "QuantizeLinear": Operator(_quantize),
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),  # half to even, as ONNX wants it
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Softmax": Operator(_softmax),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": plain(_fold(torch.add)),
    "Tanh": plain(torch.tanh),
    "Where": plain(torch.where),
    "Xor": plain(torch.logical_xor),
}
"""Operator type in the domain of ONNX -> what computes it."""
