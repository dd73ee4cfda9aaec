"""The operators of MIL in NumPy, as coremltools' definitions (converters/mil/mil/ops/defs) and Apple's MIL reference have them.

Each takes its parameters by MIL's names. Floats come as float32, whatever they are declared to be, and the evaluator rounds the
result to its declared type: what a sum is gathered in is not said by the format, and every known device gathers in 32 bits.
Integers, booleans and quantized codes come as they are. Shapes are the format's own: images are (N, C, H, W).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
OPERATORS: dict[str, Callable[..., Array | tuple[Array, ...]]] = {}

CODES = {"int8": np.int8, "uint8": np.uint8}
CASTS = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "int16": np.int16, "uint16": np.uint16, "int8": np.int8,
         "uint8": np.uint8, "bool": np.bool_}  # fmt: skip


class UnknownUseError(Exception):
    """A way of using an operator that is not covered; says which."""


def operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function under its own name."""
    OPERATORS[function.__name__.rstrip("_")] = function
    return function


def _erf(x: Array) -> Array:
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float32, x.size).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


ONE: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "tanh": np.tanh,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "square": np.square,
    "abs": np.abs,
    "erf": _erf,
    "identity": lambda x: x,
}
TWO: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.true_divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
}
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "reduce_mean": np.mean,
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
}


def _one(function: Callable[[Array], Array], *, x: Array) -> Array:
    return function(x)


def _two(function: Callable[[Array, Array], Array], *, x: Array, y: Array) -> Array:
    return function(x, y)


def _reduced(function: Callable[..., Array], *, x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
    over = tuple(axes.tolist()) if axes is not None else None
    return np.asarray(function(x, axis=over, keepdims=bool(keep_dims)))


OPERATORS |= {name: partial(_one, function) for name, function in ONE.items()}
OPERATORS |= {name: partial(_two, function) for name, function in TWO.items()}
OPERATORS |= {name: partial(_reduced, function) for name, function in REDUCTIONS.items()}


@operator
def gelu(*, x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return 0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
    raise UnknownUseError(f"gelu of mode {mode}")


@operator
def leaky_relu(*, x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, x * alpha)


@operator
def clip(*, x: Array, alpha: Array, beta: Array) -> Array:
    return np.clip(x, alpha, beta)


@operator
def log(*, x: Array, epsilon: Array | float = 1e-45) -> Array:
    return np.log(x + np.float32(epsilon))


@operator
def rsqrt(*, x: Array, epsilon: Array | float = 1e-12) -> Array:
    return 1 / np.sqrt(x + np.float32(epsilon))


@operator
def inverse(*, x: Array, epsilon: Array | float = 1e-4) -> Array:
    return 1 / (x + np.float32(epsilon))


@operator
def softmax(*, x: Array, axis: Array | int = -1) -> Array:
    e = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return e / e.sum(axis=int(axis), keepdims=True)


@operator
def cast(*, x: Array, dtype: str) -> Array:
    if dtype not in CASTS:
        raise UnknownUseError(f"cast to {dtype}")
    return x.astype(CASTS[dtype])


@operator
def reshape(*, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


@operator
def transpose(*, x: Array, perm: Array) -> Array:
    return x.transpose(perm.tolist())


@operator
def expand_dims(*, x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(axes.tolist()))


@operator
def squeeze(*, x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(axes.tolist()))


@operator
def concat(*, values: Sequence[Array], axis: Array, interleave: Array | bool = False) -> Array:
    if interleave:
        raise UnknownUseError("concat with interleave")
    return np.concatenate(values, int(axis))


@operator
def stack(*, values: Sequence[Array], axis: Array) -> Array:
    return np.stack(values, int(axis))


@operator
def split(*, x: Array, axis: Array, num_splits: Array | None = None, split_sizes: Array | None = None) -> tuple[Array, ...]:
    if split_sizes is not None:
        return tuple(np.split(x, np.cumsum(split_sizes)[:-1], int(axis)))
    assert num_splits is not None
    return tuple(np.split(x, int(num_splits), int(axis)))


@operator
def tile(*, x: Array, reps: Array) -> Array:
    return np.tile(x, reps.tolist())


@operator
def gather(
    *, x: Array, indices: Array, axis: Array, batch_dims: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    if int(batch_dims):
        raise UnknownUseError("gather with batch_dims")
    if validate_indices and (indices.min() < 0 or indices.max() >= x.shape[int(axis)]):
        raise UnknownUseError("gather with indices outside")
    return np.take(x, indices.astype(np.int64), int(axis))


@operator
def slice_by_index(
    *,
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    """Masks: where true, the begin or the end is the axis's own, or the axis goes."""
    places: list[slice | int] = []
    for i in range(x.ndim):
        if squeeze_mask is not None and squeeze_mask[i]:
            places.append(int(begin[i]))
        else:
            first = None if begin_mask is not None and begin_mask[i] else int(begin[i])
            last = None if end_mask is not None and end_mask[i] else int(end[i])
            places.append(slice(first, last, 1 if stride is None else int(stride[i])))
    return np.asarray(x[tuple(places)])


@operator
def slice_by_size(*, x: Array, begin: Array, size: Array) -> Array:
    places = [slice(b, None if n == -1 else b + n) for b, n in zip(begin.tolist(), size.tolist(), strict=True)]
    return x[tuple(places)]


@operator
def pad(*, x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    """The amounts are of the last axes, before and behind each."""
    amounts = pad.reshape(-1, 2).tolist()
    whole = [[0, 0]] * (x.ndim - len(amounts)) + amounts
    if mode == "constant":
        return np.pad(x, whole, constant_values=x.dtype.type(constant_val))
    if mode in ("reflect", "replicate"):
        return np.pad(x, whole, mode="reflect" if mode == "reflect" else "edge")
    raise UnknownUseError(f"pad of mode {mode}")


@operator
def linear(*, x: Array, weight: Array, bias: Array | None = None) -> Array:
    found = x @ weight.T
    return found if bias is None else found + bias


@operator
def matmul(*, x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False) -> Array:
    return (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)


@operator
def scaled_dot_product_attention(*, query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    scores = query @ key.swapaxes(-1, -2) * np.float32(1 / math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == np.bool_ else scores + attn_mask
    return softmax(x=scores) @ value


@operator
def layer_norm(
    *, x: Array, axes: Array, gamma: Array | None = None, beta: Array | None = None, epsilon: Array | float = 1e-5
) -> Array:
    over = tuple(axes.tolist())
    centred = x - x.mean(axis=over, keepdims=True)
    found = centred / np.sqrt(np.mean(np.square(centred), axis=over, keepdims=True) + np.float32(epsilon))
    found = found if gamma is None else found * gamma
    return found if beta is None else found + beta


@operator
def batch_norm(
    *,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: Array | float = 1e-5,
) -> Array:
    scale = 1 / np.sqrt(variance + np.float32(epsilon)) * (1 if gamma is None else gamma)
    shift = (0 if beta is None else beta) - mean * scale
    shape = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def _along(value: Array | None, axis: Array | None, rank: int) -> Any:
    """A scale or zero point: one for all, or a vector along an axis."""
    if value is None:
        return np.float32(0)
    if value.ndim == 0 or value.size == 1:
        return value.astype(np.float32).reshape(())
    assert axis is not None
    return value.astype(np.float32).reshape([-1 if i == int(axis) % rank else 1 for i in range(rank)])


@operator
def quantize(
    *,
    input: Array,  # noqa: A002  # MIL's own word
    scale: Array,
    output_dtype: str,
    zero_point: Array | None = None,
    axis: Array | None = None,
) -> Array:
    """clip(round(input / scale) + zero_point), halves to the even."""
    limits = np.iinfo(CODES[output_dtype])
    codes = np.rint(input / _along(scale, axis, input.ndim)) + _along(zero_point, axis, input.ndim)
    return np.clip(codes, limits.min, limits.max).astype(CODES[output_dtype])


@operator
def dequantize(*, input: Array, scale: Array, zero_point: Array | None = None, axis: Array | None = None) -> Array:  # noqa: A002
    return (input.astype(np.float32) - _along(zero_point, axis, input.ndim)) * _along(scale, axis, input.ndim)


@operator
def constexpr_affine_dequantize(*, quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    return dequantize(input=quantized_data, scale=scale, zero_point=zero_point, axis=axis)


@operator
def constexpr_blockwise_shift_scale(*, data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), each scale for a block of the data, whose sides are the quotient of the two shapes."""
    if any(n % k for n, k in zip(data.shape, scale.shape, strict=True)):
        raise UnknownUseError(f"{scale.shape} scales for data of shape {data.shape}")

    def spread(value: Array) -> Array:
        for axis, (n, k) in enumerate(zip(data.shape, value.shape, strict=True)):
            value = np.repeat(value, n // k, axis) if k not in (1, n) else value
        return value.astype(np.float32)

    moved = data.astype(np.float32) if offset is None else data.astype(np.float32) - spread(offset)
    return moved * spread(scale)
