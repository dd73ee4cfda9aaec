"""ONNX's Resize: torch's own where both sample at the same points, else a constant matrix for each axis."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tasktok_edge.model.onnx_spatial import Prepared

Points = NDArray[np.float32]  # where each new row lies among the old ones
MAX_TABLE = 1 << 24  # elements of a matrix
# What F.interpolate samples: ONNX's mode and coordinates, and how torch is asked for them.
TORCHS: list[tuple[str, str, dict[str, Any]]] = [
    ("nearest", "asymmetric", {"mode": "nearest"}),
    ("linear", "half_pixel", {"mode": "bilinear", "align_corners": False}),
    ("linear", "align_corners", {"mode": "bilinear", "align_corners": True}),
]


def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    axes: Sequence[int] = (),
) -> Prepared:
    chosen = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    target, tables = list(x.shape), dict[int, NDArray[np.float32]]()
    for i, axis in enumerate(chosen):
        before = x.shape[axis]
        # In float32 as below: 10 rows by 0.7 are 7.
        after = sizes[i] if sizes else int(np.float32(before) * np.float32((scales or ())[i]))
        scale = scales[i] if scales else after / before
        if after < 1 or after * before > MAX_TABLE:
            raise ValueError(f"resizing {before} to {after} is not taken")
        if after == before and scale == 1:
            continue
        target[axis] = after
        points = _points(before, after, scale, coordinate_transformation_mode)
        tables[axis] = _matrix(points, before, mode, nearest_mode, cubic_coeff_a, exclude_outside=bool(exclude_outside))
    for known, coordinates, settings in TORCHS:
        own = {a: _points(x.shape[a], target[a], target[a] / x.shape[a], coordinates) for a in tables}
        if mode == known and x.ndim == 4 and set(tables) <= {2, 3} and all(
            np.allclose(tables[a], _matrix(at, x.shape[a], mode, "floor"), atol=1e-5) for a, at in own.items()
        ):  # fmt: skip
            return partial(F.interpolate, size=tuple(target[2:]), **settings), ()
    return partial(_along_axes, axes=tuple(tables)), tuple(torch.from_numpy(table) for table in tables.values())


def _along_axes(x: Tensor, *tables: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis, table in zip(axes, tables, strict=True):  # table (after, before)
        x = F.linear(x.transpose(axis, -1), table).transpose(axis, -1)
    return x


def _points(before: int, after: int, scale: float, mode: str) -> Points:
    # In float32, as engines do: row 2 by a scale of 0.4 is row 5, though 2 by the nearest float to 0.4 is less.
    i, step = np.arange(after, dtype=np.float32), np.float32(scale)
    match mode:
        case "half_pixel":
            return (i + np.float32(0.5)) / step - np.float32(0.5)
        case "pytorch_half_pixel":
            return (i + np.float32(0.5)) / step - np.float32(0.5) if after > 1 else i
        case "align_corners":
            return i * np.float32(before - 1) / np.float32(after - 1) if after > 1 else i
        case "asymmetric":
            return i / step
    raise ValueError(f"coordinate_transformation_mode {mode!r} is not taken")


def _matrix(
    at: Points, before: int, mode: str, nearest: str, cubic: float = -0.75, *, exclude_outside: bool = False
) -> NDArray[np.float32]:
    """What each new row is made of: (after, before). Beyond the edge its value is repeated."""
    low = np.floor(at)
    match mode:
        case "nearest":
            taps = [(_rounded(at, nearest), np.ones_like(at))]
        case "linear":
            taps = [(low, 1 - (at - low)), (low + 1, at - low)]
        case "cubic":
            taps = [(low + k, _cubic(np.abs(at - low - k), cubic)) for k in (-1, 0, 1, 2)]
        case _:
            raise ValueError(f"mode {mode!r} is not taken")
    table, rows = np.zeros((len(at), before)), np.arange(len(at))
    for tap, weight in taps:
        counts = (tap >= 0) & (tap < before) if exclude_outside else np.ones_like(tap)
        np.add.at(table, (rows, np.clip(tap, 0, before - 1).astype(np.int64)), weight * counts)
    return (table / table.sum(1, keepdims=True)).astype(np.float32)


def _rounded(at: Points, mode: str) -> Points:
    match mode:
        case "floor":
            return np.floor(at)
        case "ceil":
            return np.ceil(at)
        case "round_prefer_floor":
            return np.ceil(at - 0.5)
        case "round_prefer_ceil":
            return np.floor(at + 0.5)
    raise ValueError(f"nearest_mode {mode!r} is not taken")


def _cubic(x: Points, a: float) -> Points:
    """Keys' kernel at distances of 0 to 2."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x <= 1, near, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a)
