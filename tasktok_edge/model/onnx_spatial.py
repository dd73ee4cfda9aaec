"""ONNX operators that look at neighbours in the image: convolutions, pooling, padding; as torch has them.

Tensors are (B, C, H, W). Attributes are keywords with ONNX's defaults. https://onnx.ai/onnx/operators
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

# What runs, and the constants that it takes beside its input: they become the network's own, cast and exported with it.
Prepared = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
Pads = list[tuple[int, int]]  # before and after, height then width


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    _check_2d(weight, kernel_shape)
    sides = _pads(x, weight.shape[2:], strides, pads, dilations, auto_pad)
    if not _even(sides):
        x, sides = F.pad(x, _flat(sides)), [(0, 0), (0, 0)]
    return F.conv2d(x, weight, bias, tuple(strides), (sides[0][0], sides[1][0]), tuple(dilations), group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    output_padding: Sequence[int] = (0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> Tensor:
    _check_2d(weight, kernel_shape)
    sides = [(pads[0], pads[2]), (pads[1], pads[3])]
    own = (sides[0][0], sides[1][0]) if _even(sides) else (0, 0)
    y = F.conv_transpose2d(x, weight, bias, tuple(strides), own, tuple(output_padding), group, tuple(dilations))
    if _even(sides):
        return y
    (top, bottom), (left, right) = sides
    return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    sides = _pads(x, kernel_shape, strides, pads, dilations, auto_pad)
    if _is_torchs(sides, kernel_shape):
        own = (sides[0][0], sides[1][0])
        return F.max_pool2d(x, tuple(kernel_shape), tuple(strides), own, tuple(dilations), bool(ceil_mode))
    whole = _whole_windows(x, sides, kernel_shape, strides, dilations, ceil_mode)
    return F.max_pool2d(F.pad(x, _flat(whole), value=-torch.inf), tuple(kernel_shape), tuple(strides), 0, tuple(dilations))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Prepared:
    if tuple(dilations) != (1, 1) or max(pads) > max(kernel_shape):
        raise ValueError(f"dilations {list(dilations)} with padding {list(pads)} are not taken")
    kernel, steps = tuple(kernel_shape), tuple(strides)
    sides = _pads(x, kernel_shape, strides, pads, dilations, auto_pad)
    if _is_torchs(sides, kernel_shape):
        own = (sides[0][0], sides[1][0])
        run = partial(F.avg_pool2d, kernel_size=kernel, stride=steps, padding=own, ceil_mode=bool(ceil_mode))
        return partial(run, count_include_pad=bool(count_include_pad)), ()
    whole = _whole_windows(x, sides, kernel_shape, strides, dilations, ceil_mode)
    counted = F.pad(torch.ones(1, 1, *x.shape[2:]), _flat(sides), value=float(count_include_pad))
    counted = F.pad(counted, _flat([(0, w[1] - s[1]) for w, s in zip(whole, sides, strict=True)]))
    share = F.avg_pool2d(counted, kernel, steps)  # of each window's cells, those that count
    return partial(_average_of_padded, padding=_flat(whole), kernel=kernel, strides=steps), (share.reciprocal(),)


def _average_of_padded(
    x: Tensor, gain: Tensor, *, padding: list[int], kernel: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    return F.avg_pool2d(F.pad(x, padding), kernel, strides) * gain


def pad(
    x: Tensor,
    pads: list[int],
    value: float | list[float] | None = None,
    axes: list[int] | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    chosen = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(chosen):
        sides[axis] = (pads[i], pads[i + len(chosen)])
    if mode == "constant":
        return F.pad(x, _flat(sides), value=number(value) or 0)
    modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in modes or x.ndim != 4 or any(sides[0] + sides[1]):
        raise ValueError(f"mode {mode!r} of padding {pads} is not taken")
    (top, bottom), (left, right) = sides[2:]
    return F.pad(x, [left, right, top, bottom], mode=modes[mode])


def _check_2d(weight: Tensor, kernel_shape: Sequence[int]) -> None:
    if weight.ndim != 4 or (kernel_shape and tuple(kernel_shape) != tuple(weight.shape[2:])):
        raise ValueError(f"weights of shape {tuple(weight.shape)} are not those of a convolution in two dimensions")


def _pads(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], auto_pad: str
) -> Pads:
    """How much is padded on each side."""
    if x.ndim != 4 or not len(kernel) == len(strides) == len(dilations) == 2 or len(pads) != 4:
        raise ValueError("it is not in two dimensions")
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        raise ValueError("a size is not positive")
    if auto_pad == "NOTSET":
        return [(pads[0], pads[2]), (pads[1], pads[3])]
    sides: Pads = []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        lacking = max((ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        few, many = lacking // 2, lacking - lacking // 2
        ways = {"VALID": (0, 0), "SAME_UPPER": (few, many), "SAME_LOWER": (many, few)}
        sides.append(ways[auto_pad])
    return sides


def _whole_windows(
    x: Tensor, sides: Pads, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], ceil_mode: int
) -> Pads:
    """Padding with which every window that counts is whole: at the end more where `ceil_mode` rounds the number of them up."""
    whole: Pads = []
    for size, (before, after), k, stride, dilation in zip(x.shape[2:], sides, kernel, strides, dilations, strict=True):
        span = (k - 1) * dilation + 1
        steps = (before + size + after - span) / stride
        last = ceil(steps) if ceil_mode else int(steps)
        if ceil_mode and last * stride >= size + before:  # it would see nothing but what pads the end
            last -= 1
        whole.append((before, max(last * stride + span - size - before, after)))
    return whole


def _is_torchs(sides: Pads, kernel: Sequence[int]) -> bool:
    return _even(sides) and all(2 * side[0] <= k for side, k in zip(sides, kernel, strict=True))


def _even(sides: Pads) -> bool:
    return all(before == after for before, after in sides)


def _flat(sides: Pads) -> list[int]:
    """In the order of F.pad: the last axis first, leading axes without padding left out."""
    flat = [n for side in reversed(sides) for n in side]
    while len(flat) > 2 and not any(flat[-2:]):
        del flat[-2:]
    return flat


def number(value: float | list[float] | None) -> float | None:
    """A constant of one element, with or without an axis."""
    return value[0] if isinstance(value, list) else value
