"""The kinds of objects, as outlines of radius 1; several contours make holes (even-odd filling)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KINDS = ("ball", "box", "triangle", "star", "ring", "cross", "crescent", "capsule")


def _arc(
    start: float, stop: float, n: int, *, radius: float = 1.0, centre: tuple[float, float] = (0, 0)
) -> NDArray[np.float64]:
    t = np.linspace(start, stop, n)
    return np.stack([np.cos(t), np.sin(t)], 1) * radius + centre


@lru_cache
def outline(kind: str) -> tuple[NDArray[np.float64], ...]:
    """Give the contours (n, 2) of a kind."""
    full = 2 * np.pi
    if kind == "ball":
        return (_arc(0, full, 48)[:-1] * 0.9,)
    if kind == "box":
        return (_arc(np.pi / 4, np.pi / 4 + full, 5)[:-1] * 1.1,)
    if kind == "triangle":
        return (_arc(0, full, 4)[:-1] * 1.15,)
    if kind == "star":
        star = _arc(0, full, 11)[:-1]
        star[1::2] *= 0.42
        return (star * 1.15,)
    if kind == "ring":
        return _arc(0, full, 48)[:-1], _arc(0, full, 48, radius=0.52)[:-1]
    if kind == "cross":
        a, b = 0.33, 1.05
        quarter = np.array([[b, -a], [b, a], [a, a]])
        turns = [np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) for t in np.arange(4) * np.pi / 2]
        return (np.concatenate([quarter @ turn for turn in turns]),)
    if kind == "crescent":
        # Outer circle of radius 1, bitten by one of radius 0.85 around (0.55, 0): they meet at angle `t`.
        t = np.arccos((1 + 0.55**2 - 0.85**2) / (2 * 0.55))
        inner = np.arctan2(np.sin(t), np.cos(t) - 0.55)
        bite = _arc(full - inner, inner, 32, radius=0.85, centre=(0.55, 0))
        return (np.concatenate([_arc(t, full - t, 48), bite]) + np.array([0.25, 0]),)
    if kind == "capsule":
        half, r = 0.78, 0.36
        right = _arc(-np.pi / 2, np.pi / 2, 16, radius=r, centre=(half, 0))
        return (np.concatenate([right, -right]),)
    raise ValueError(f"no outline for kind '{kind}'")
