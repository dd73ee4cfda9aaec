"""Single degradations of rising severity: sensor noise, blur, rain, haze, snow and low light.

Each takes an RGB image (H, W, 3) float32 in [0, 1] and gives one back. Lengths in pixels are for a side of 256 and grow
with the image. Severity is 1 (visible) to 5 (hard); the tables below are the only place where it becomes numbers.
"""

import cv2
import numpy as np

from tasktok_edge.data.shapes import Bytes, Floats

REFERENCE_PX = 256
PHOTONS = (220, 90, 45, 22, 10)  # at white: fewer is noisier
READ_NOISE = (0.008, 0.014, 0.022, 0.032, 0.045)
BLUR_PX = (2.5, 4.5, 7.0, 10.0, 14.0)  # length of the motion, diameter of the defocus
RAIN_SHARE = (0.002, 0.004, 0.007, 0.011, 0.016)  # of the pixels start a streak
RAIN_VEIL = (0.04, 0.07, 0.11, 0.16, 0.22)
HAZE_PER_M = (0.025, 0.05, 0.085, 0.14, 0.22)
SNOW_FLAKES = (120, 260, 450, 700, 1000)  # at 256 x 256
SNOW_VEIL = (0.04, 0.09, 0.15, 0.21, 0.28)
DARK_GAMMA = (1.3, 1.6, 1.9, 2.2, 2.5)
DARK_GAIN = (0.7, 0.55, 0.42, 0.32, 0.24)
DARK_NOISE = (0.006, 0.010, 0.015, 0.020, 0.026)


def _unit(image: Floats) -> Floats:
    return np.clip(image, 0, 1).astype(np.float32, copy=False)


def _scale(image: Floats) -> float:
    return min(image.shape[:2]) / REFERENCE_PX


def _veil(image: Floats, amount: Floats | float, light: float) -> Floats:
    """Mix in `amount` (a number, or (H, W)) of a grey light."""
    share = amount[..., None] if isinstance(amount, np.ndarray) else amount
    return (image + (light - image) * share).astype(np.float32, copy=False)


def line_kernel(length_px: float, angle_rad: float) -> Floats:
    """Return a normalised kernel of odd side: a one pixel wide line through its middle."""
    side = max(3, int(np.ceil(length_px)) | 1)
    kernel = np.zeros((side, side), np.uint8)
    reach = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * (length_px - 1) / 2
    middle = (side - 1) / 2
    start, end = (np.rint((middle + reach * way) * 16).astype(int).tolist() for way in (-1, 1))
    cv2.line(kernel, start, end, (255,), 1, cv2.LINE_AA, 4)
    return (kernel / max(float(kernel.sum()), 1.0)).astype(np.float32)


def disc_kernel(diameter_px: float) -> Floats:
    """Return a normalised kernel of odd side: a disc with a soft rim."""
    reach = int(np.ceil(diameter_px / 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(diameter_px / 2 + 0.5 - np.hypot(x, y), 0, 1)
    return (disc / disc.sum()).astype(np.float32)


def noise(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Add shot noise, which grows with the light, and read noise, which does not."""
    variance = np.clip(image, 0, 1) / PHOTONS[severity - 1] + READ_NOISE[severity - 1] ** 2
    return _unit(image + np.sqrt(variance) * rng.standard_normal(image.shape, np.float32))


def blur(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Blur by a straight motion or by defocus, one as likely as the other."""
    length = max(1.5, BLUR_PX[severity - 1] * _scale(image))
    motion, angle = rng.random() < 0.5, rng.uniform(0, np.pi)
    kernel = line_kernel(length * 1.6, angle) if motion else disc_kernel(length)
    return _unit(cv2.filter2D(image, -1, kernel).astype(np.float32, copy=False))


def rain(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Add bright slanted streaks and the thin veil of the drops too far to be seen."""
    height, width = image.shape[:2]
    # One slant a frame; each drop is a point smeared along it.
    angle = np.pi / 2 + rng.uniform(-0.35, 0.35)
    drops = rng.random((height, width), dtype=np.float32)
    bright = np.where(drops < RAIN_SHARE[severity - 1], rng.uniform(0.5, 1.0), 0).astype(np.float32)
    length = max(3.0, rng.uniform(16, 26) * _scale(image))
    streaks = cv2.filter2D(cv2.GaussianBlur(bright, (3, 3), 0.6), -1, line_kernel(length, angle)) * np.float32(length * 1.5)
    return _unit(_veil(_veil(image, RAIN_VEIL[severity - 1], 0.7), np.clip(streaks, 0, 0.75), 0.92))


def haze(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Apply I = J t + A (1 - t) with t = exp(-beta d); without a depth map, metres from 2 below to 30 at the top."""
    height, width = image.shape[:2]
    metres = depth if depth is not None else np.repeat(np.linspace(30, 2, height, dtype=np.float32)[:, None], width, axis=1)
    light = rng.uniform(0.75, 0.95)
    beta = HAZE_PER_M[severity - 1] * rng.uniform(0.85, 1.15)
    return _unit(_veil(image, (1 - np.exp(-beta * metres)).astype(np.float32), light))


def snow(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Add soft flakes of three distances and a bright veil."""
    height, width = image.shape[:2]
    scale = _scale(image)
    out = _veil(image, SNOW_VEIL[severity - 1], 0.9)
    total = SNOW_FLAKES[severity - 1] * height * width / (REFERENCE_PX**2 * max(scale, 0.25) ** 2)
    for share, radius, opacity in ((0.62, 0.9, 0.7), (0.3, 1.7, 0.8), (0.08, 3.0, 0.85)):
        layer: Bytes = np.zeros((height, width), np.uint8)
        n = max(1, round(total * share))
        places = rng.random((n, 2)) * (width, height) * 16
        radii = np.maximum(rng.uniform(0.6, 1.3, n) * radius * scale, 0.5) * 16
        for (x, y), r in zip(places.astype(int).tolist(), radii.astype(int).tolist(), strict=True):
            cv2.circle(layer, (x, y), r, (255,), -1, cv2.LINE_AA, 4)
        soft = cv2.GaussianBlur(layer, (0, 0), max(0.5, radius * 0.5 * scale)).astype(np.float32)
        out = _veil(out, soft * np.float32(opacity / 255), 0.96)
    return _unit(out)


def low_light(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    """Darken by a gamma and a gain, then add the shot and read noise that a dark frame shows."""
    dark = np.clip(image, 0, 1) ** np.float32(DARK_GAMMA[severity - 1]) * np.float32(DARK_GAIN[severity - 1])
    deviation = np.sqrt(dark / 900 + DARK_NOISE[severity - 1] ** 2)
    return _unit(dark + deviation * rng.standard_normal(image.shape, np.float32))
