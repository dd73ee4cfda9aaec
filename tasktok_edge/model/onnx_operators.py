"""ONNX operators as torch has them. Arguments are a node's inputs, keywords its attributes with ONNX's defaults.

https://onnx.ai/onnx/operators
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasktok_edge.model.onnx_spatial import Prepared, number

Axes = int | Sequence[int] | None
MAX_RANGE = 1 << 20


def axes_of(axes: Axes, rank: int) -> list[int]:
    return sorted(a % rank for a in ([axes] if isinstance(axes, int) else axes or ()))


def divide(a: Any, b: Any) -> Tensor:
    floating = any(isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point()) for v in (a, b))
    return a / b if floating else torch.div(torch.as_tensor(a), b, rounding_mode="trunc")


def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def clip(x: Tensor, low: float | list[float] | None = None, high: float | list[float] | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, number(low), number(high))


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.relu(x) - slope * F.relu(-x)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return F.softmax(x, axis)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return F.log_softmax(x, axis)


def softmax_of_rows(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from this one on."""
    return F.softmax(x.flatten(axis), -1).reshape(x.shape)


def log_softmax_of_rows(x: Tensor, *, axis: int = 1) -> Tensor:
    return F.log_softmax(x.flatten(axis), -1).reshape(x.shape)


def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    shape = x.shape[axis % x.ndim :]
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  # ONNX's names
    transB: int = 0,  # noqa: N803
) -> Tensor:
    a = a.t() if transA else a
    if alpha == 1 and (c is None or (beta == 1 and c.ndim == 1)):
        return F.linear(a, b if transB else b.t(), c)
    y = a @ (b.t() if transB else b)
    y = y if alpha == 1 else y * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    return x.reshape([x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(shape)])


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(reversed(range(x.ndim))) if perm is None else tuple(perm))


def squeeze(x: Tensor, inputs: list[int] | None = None, *, axes: Axes = None) -> Tensor:
    chosen = inputs if inputs is not None else axes
    return x.squeeze() if chosen is None else x.squeeze(tuple(axes_of(chosen, x.ndim)))


def unsqueeze(x: Tensor, inputs: list[int] | None = None, *, axes: Axes = None) -> Tensor:
    chosen = inputs if inputs is not None else axes
    for axis in axes_of(chosen, x.ndim + (1 if isinstance(chosen, int) else len(chosen or ()))):
        x = x.unsqueeze(axis)
    return x


def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def cut(x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None) -> Tensor:
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = (i if axes is None else axes[i]) % x.ndim, 1 if steps is None else steps[i]
        rows = range(x.shape[axis])[start:end:step]
        ascending = rows if step > 0 else rows[::-1]
        cut = slice(ascending.start, ascending.stop, ascending.step) if len(rows) else slice(0, 0)
        x = x[(slice(None),) * axis + (cut,)]
        x = x.flip(axis) if step < 0 else x
    return x


def split(x: Tensor, sizes: list[int] | None = None, *, axis: int = 0, split: list[int] | None = None, num_outputs: int) -> Any:
    chosen = sizes or split
    return torch.split(x, chosen or -(-x.shape[axis] // num_outputs), axis)


def gather(x: Tensor, rows: Any, *, axis: int = 0) -> Prepared:
    index = torch.as_tensor(rows, dtype=torch.int64)
    if index.ndim == 0:
        return partial(torch.select, dim=axis, index=int(index)), ()
    axis = axis % x.ndim
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return partial(_rows, axis=axis, shape=shape), (index.flatten() % max(x.shape[axis], 1),)


def _rows(x: Tensor, index: Tensor, *, axis: int, shape: tuple[int, ...]) -> Tensor:
    return x.index_select(axis, index).reshape(shape)


def expand(x: Tensor, shape: list[int]) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(shape)))


def tile(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def cast(x: Tensor, *, to: int) -> Tensor:
    """Among floats nothing happens: the network computes in what its weights have."""
    floats, boolean = (1, 10, 11, 16), 9
    if to in floats:
        return x if x.is_floating_point() else x.to(torch.float32)
    return x.to(torch.bool if to == boolean else torch.int64)


def constant_of_shape(shape: list[int], *, value: Tensor | None = None) -> Tensor:
    return (torch.zeros(()) if value is None else value.reshape(())).expand(shape)  # without memory, however large


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def number_range(start: float, limit: float, delta: float) -> Tensor:
    if abs(limit - start) > MAX_RANGE * abs(delta):
        raise ValueError(f"a range of more than {MAX_RANGE} numbers is not taken")
    return torch.arange(start, limit, delta)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    b, c, h, w = x.shape
    x = x.reshape(b, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, -1, h * blocksize, w * blocksize)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, -1, h // blocksize, w // blocksize)


def einsum(*parts: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *parts)


def image_mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def image_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def identity(x: Tensor) -> Tensor:
    return x


def dropout(x: Tensor, ratio: float | None = None, training: bool | None = None) -> Tensor:
    if training:
        raise ValueError("it is in training mode: export the network after .eval()")
    return x
