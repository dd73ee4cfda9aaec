"""The operators of MIL that look at neighbours in an image (N, C, H, W): convolution, pooling, resizing, pixel shuffles."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tasktok_edge.runtimes.mil_operators import Array, UnknownUseError, operator


def _padding(pad_type: str, pad: Array | None, sizes: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """How many to add before and behind each spatial axis of (length, window, stride), the window with its holes."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        assert pad is not None
        return [(int(a), int(b)) for a, b in pad.reshape(-1, 2)]
    totals = [max((-(-length // stride) - 1) * stride + window - length, 0) for length, window, stride in sizes]
    if pad_type == "same":
        return [(total // 2, total - total // 2) for total in totals]
    if pad_type == "same_lower":
        return [(total - total // 2, total // 2) for total in totals]
    raise UnknownUseError(f"pad_type {pad_type}")


def _whole(x: Array | None, n: int) -> list[int]:
    return [1] * n if x is None else [int(one) for one in x]


@operator
def conv(
    *,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    """x (N, C, H, W), weight (O, C / groups, h, w)."""
    if x.ndim != 4:
        raise UnknownUseError(f"conv of {x.ndim - 2} spatial axes")
    stride, dilation, n = _whole(strides, 2), _whole(dilations, 2), int(groups)
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    amounts = _padding(pad_type, pad, list(zip(x.shape[2:], window, stride, strict=True)))
    x = np.pad(x, [(0, 0), (0, 0), *amounts]) if any(map(any, amounts)) else x
    views: Array = sliding_window_view(x, tuple(window), axis=(2, 3))  # type: ignore[call-overload]
    seen = views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    batch, _, high, wide = seen.shape[:4]
    each, found = weight.shape[0] // n, []
    for i in range(n):
        part = seen[:, i * weight.shape[1] : (i + 1) * weight.shape[1]].transpose(0, 2, 3, 1, 4, 5)
        columns = part.reshape(batch * high * wide, -1)
        found.append(columns @ weight[i * each : (i + 1) * each].reshape(each, -1).T)
    result = np.concatenate(found, 1) if n > 1 else found[0]
    result = result if bias is None else result + bias
    return result.reshape(batch, high, wide, -1).transpose(0, 3, 1, 2)


def _windows(
    x: Array, kernel_sizes: Array, strides: Array | None, pad_type: str, pad: Array | None, ceil_mode: Array | bool, fill: float
) -> Array:
    if ceil_mode:
        raise UnknownUseError("pooling with ceil_mode")
    kernel = [int(k) for k in kernel_sizes]
    stride = _whole(strides, len(kernel))
    amounts = _padding(pad_type, pad, list(zip(x.shape[2:], kernel, stride, strict=True)))
    padded = np.pad(x, [(0, 0), (0, 0), *amounts], constant_values=fill)
    axes = tuple(range(2, x.ndim))
    steps = tuple(slice(None, None, s) for s in stride)
    views: Array = sliding_window_view(padded, tuple(kernel), axis=axes)  # type: ignore[call-overload]
    return views[(slice(None), slice(None), *steps)]


@operator
def max_pool(
    *,
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    ceil_mode: Array | bool = False,
) -> Array:
    seen = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -np.inf)
    return np.asarray(seen.max(axis=tuple(range(x.ndim, seen.ndim))))


@operator
def avg_pool(
    *,
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    exclude_padding_from_average: Array | bool = False,
    ceil_mode: Array | bool = False,
) -> Array:
    window = (kernel_sizes, strides, pad_type, pad, ceil_mode, 0.0)
    seen = _windows(x, *window)
    axes = tuple(range(x.ndim, seen.ndim))
    if exclude_padding_from_average:
        return np.asarray(seen.sum(axis=axes) / _windows(np.ones_like(x), *window).sum(axis=axes))
    return np.asarray(seen.mean(axis=axes))


@operator
def upsample_nearest_neighbor(*, x: Array, scale_factor_height: Array = 1, scale_factor_width: Array = 1) -> Array:  # type: ignore[assignment]
    for axis, factor in ((2, float(scale_factor_height)), (3, float(scale_factor_width))):
        if factor != int(factor):
            raise UnknownUseError(f"upsample_nearest_neighbor by {factor}")
        x = np.repeat(x, int(factor), axis)
    return x


def _between(n: int, at: Array) -> Array:
    """The matrix (places, n) that takes n values to those between them, places outside being held at the ends."""
    at = np.clip(at, 0, n - 1)
    low = np.minimum(np.floor(at).astype(np.int64), max(n - 2, 0))
    share = (at - low).astype(np.float32)
    matrix = np.zeros((len(at), n), np.float32)
    rows = np.arange(len(at))
    matrix[rows, low] = 1 - share
    matrix[rows, np.minimum(low + 1, n - 1)] += share
    return matrix


@operator
def upsample_bilinear(
    *,
    x: Array,
    scale_factor_height: Array = 1,  # type: ignore[assignment]
    scale_factor_width: Array = 1,  # type: ignore[assignment]
    align_corners: Array | bool = True,
    half_pixel_centers: Array | bool | None = None,
) -> Array:
    """`half_pixel_centers` is by default the opposite of `align_corners`; without both, a place is i / factor."""
    half = not align_corners if half_pixel_centers is None else bool(half_pixel_centers)
    matrices = []
    for n, factor in ((x.shape[2], float(scale_factor_height)), (x.shape[3], float(scale_factor_width))):
        new = math.floor(n * factor)
        i = np.arange(new)
        at = i * (n - 1) / max(new - 1, 1) if align_corners else (i + 0.5) / factor - 0.5 if half else i / factor
        matrices.append(_between(n, at))
    return np.asarray(matrices[0] @ x @ matrices[1].T)


@operator
def resize_bilinear(*, x: Array, target_size_height: Array, target_size_width: Array, sampling_mode: str = "DEFAULT") -> Array:
    matrices = []
    for n, new in ((x.shape[2], int(target_size_height)), (x.shape[3], int(target_size_width))):
        i = np.arange(new)
        if sampling_mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            at = i * (n - 1) / max(new - 1, 1)
        elif sampling_mode == "UNALIGN_CORNERS":
            at = (i + 0.5) * n / new - 0.5
        elif sampling_mode == "DEFAULT":
            at = i * n / new
        else:
            raise UnknownUseError(f"resize_bilinear of mode {sampling_mode}")
        matrices.append(_between(n, at))
    return np.asarray(matrices[0] @ x @ matrices[1].T)


@operator
def pixel_shuffle(*, x: Array, upscale_factor: Array) -> Array:
    r = int(upscale_factor)
    n, c, h, w = x.shape
    return x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)


@operator
def pixel_unshuffle(*, x: Array, downscale_factor: Array) -> Array:
    r = int(downscale_factor)
    n, c, h, w = x.shape
    return x.reshape(n, c, h // r, r, w // r, r).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * r**2, h // r, w // r)
