"""Backgrounds with the statistics of natural images: dead leaves (arXiv math/0312035) under 1/f noise."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_LEAVES = 90
_MARGIN = 0.125  # of the frame's side, so that the camera can pan


@dataclass(frozen=True)
class Background:
    """What a background is drawn from."""

    seed: int
    slope: float  # amplitude spectrum of the noise: 1 / f**slope
    noise: float  # its share
    near: float  # metres at the lower edge
    far: float  # metres at the upper edge
    pan: tuple[float, float]  # frame sides a second


def make_background(rng: np.random.Generator) -> Background:
    """Draw the parameters of one background."""
    near = rng.uniform(5.5, 7)
    return Background(
        seed=int(rng.integers(2**31)),
        slope=float(rng.uniform(0.9, 1.4)),
        noise=float(rng.uniform(0.05, 0.12)),
        near=float(near),
        far=float(near + rng.uniform(2, 8)),
        pan=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.015))),
    )


def draw_background(spec: Background, *, size: int, time: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the picture (size, size, 3) float32 in about [0, 1] and its depth (size, size) in metres."""
    rng = np.random.default_rng(spec.seed)
    margin = int(size * _MARGIN)
    side = size + 2 * margin
    canvas = _dead_leaves(rng, side)
    canvas += spec.noise * _coloured_noise(rng, side, spec.slope)[..., None] * rng.uniform(0.7, 1.3, 3).astype(np.float32)
    dx, dy = (int(np.clip(round(p * time * size), -margin, margin)) for p in spec.pan)
    image = canvas[margin + dy : margin + dy + size, margin + dx : margin + dx + size]
    rows = np.linspace(spec.far, spec.near, size, dtype=np.float32)[:, None]
    return np.clip(image, 0, 1).astype(np.float32), np.repeat(rows, size, 1)


def _dead_leaves(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Opaque ellipses dropped on each other, radii after a power law, colours from a small muted palette."""
    palette = rng.uniform(0.15, 0.75, (5, 3))
    palette += 0.55 * (palette.mean(1, keepdims=True) - palette)  # muted: objects are more vivid
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = palette[0]
    low, high = 0.02, 0.35
    # Inverse transform of p(r) ~ r**-3 between low and high: the density that makes dead leaves scale-invariant.
    u = rng.random(_LEAVES)
    radii = np.sort((low**-2 + u * (high**-2 - low**-2)) ** -0.5)[::-1] * side
    places = rng.uniform(0, side, (_LEAVES, 2))
    shapes = rng.uniform(0.4, 1, _LEAVES)
    turns = rng.uniform(0, 180, _LEAVES)
    colours = palette[rng.integers(len(palette), size=_LEAVES)] + rng.normal(0, 0.06, (_LEAVES, 3))
    for place, radius, shape, turn, colour in zip(places, radii, shapes, turns, colours, strict=True):
        axes = (max(int(radius), 1), max(int(radius * shape), 1))
        cv2.ellipse(canvas, (int(place[0]), int(place[1])), axes, float(turn), 0, 360, colour.tolist(), -1)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.6), np.float32)


def _coloured_noise(rng: np.random.Generator, side: int, slope: float) -> NDArray[np.float32]:
    """Gaussian noise (side, side) of unit variance whose amplitude falls with 1 / f**slope."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)) / f**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return np.asarray(noise / (noise.std() + 1e-9), np.float32)
