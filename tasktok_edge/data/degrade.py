"""Degradations of a frame: TaskTok's Mix-A and Mix-B, and what weather, optics and darkness do to a camera.

Images are (H, W, 3) float32 RGB in [0, 1], in and out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import UsageError, unknown_word

Image = NDArray[np.float32]
KERNEL = 41  # taps of Mix-B's blur


def to_float(frame: NDArray[np.uint8]) -> Image:
    """uint8 to float32 in [0, 1]."""
    return frame.astype(np.float32) / np.float32(255)


def to_uint8(image: Image) -> NDArray[np.uint8]:
    """Float in nominal [0, 1] to uint8: clip, round."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class MixB:
    """One draw of Mix-B (TaskTok's training degradation)."""

    sigma_x: float  # pixels
    sigma_y: float
    angle: float  # radians
    scale: float  # how much smaller the frame is sent
    noise: float  # standard deviation, of 1
    quality: int  # JPEG


def draw_mix_b(rng: np.random.Generator) -> MixB:
    """Blur isotropic or not by a coin, sigma U(0.1, 8); scale U(1, 16); noise U(0, 10)/255; quality 50 to 99."""
    isotropic = rng.random() < 0.5
    sigma_x, sigma_y, angle = rng.uniform(0.1, 8), rng.uniform(0.1, 8), rng.uniform(-np.pi, np.pi)
    if isotropic:
        sigma_y, angle = sigma_x, 0.0
    return MixB(sigma_x, sigma_y, angle, rng.uniform(1, 16), rng.uniform(0, 10) / 255, int(rng.uniform(50, 100)))


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float, *, taps: int = KERNEL) -> NDArray[np.float32]:
    """A rotated Gaussian (taps, taps) that sums to 1."""
    axis = np.arange(taps) - taps // 2
    x, y = np.meshgrid(axis, axis)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)


def shrink(image: Image, scale: float) -> Image:
    """Bilinear, without antialias, to 1/scale of each side; at least one pixel."""
    height, width = image.shape[:2]
    smaller = (max(int(width // scale), 1), max(int(height // scale), 1))
    return cv2.resize(image, smaller, interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def jpeg(image: Image, quality: int) -> Image:
    """Through an 8-bit JPEG and back."""
    done, data = cv2.imencode(".jpg", to_uint8(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
    if decoded is None:
        raise UsageError(f"an image of {image.shape} could not be coded as JPEG")
    return to_float(np.ascontiguousarray(decoded[..., ::-1]))


def apply_mix_b(image: Image, draw: MixB, rng: np.random.Generator) -> Image:
    """Blur, shrink, noise, JPEG, back to size: Mix-B with the parameters of `draw`; `rng` gives the noise."""
    height, width = image.shape[:2]
    blurred = cv2.filter2D(image, -1, gaussian_kernel(draw.sigma_x, draw.sigma_y, draw.angle))
    x = shrink(np.asarray(blurred, np.float32), draw.scale)
    noisy = x + rng.standard_normal(x.shape, np.float32) * np.float32(draw.noise)
    x = np.asarray(np.clip(noisy, 0, 1), np.float32)
    return np.asarray(cv2.resize(jpeg(x, draw.quality), (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def mix_b(image: Image, rng: np.random.Generator) -> Image:
    """TaskTok's Mix-B with parameters drawn from `rng`."""
    return apply_mix_b(image, draw_mix_b(rng), rng)


def mix_a(image: Image) -> Image:
    """TaskTok's Mix-A: an eighth of the size, JPEG 75, back; no blur, no noise, nothing random."""
    height, width = image.shape[:2]
    return np.asarray(cv2.resize(jpeg(shrink(image, 8), 75), (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Shot and read noise of a sensor: variance grows with the signal."""
    read, shot = 0.02 * severity, 0.01 * severity
    sigma = np.sqrt(read**2 + shot * image)
    return np.clip(image + sigma * rng.standard_normal(image.shape, np.float32), 0, 1).astype(np.float32)


def blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Motion blur: a line of `severity` hundredths times 2.5 of the frame's side, in any direction."""
    length = max(0.025 * severity * min(image.shape[:2]), 1.0)
    taps = 2 * int(np.ceil(length / 2)) + 1
    kernel = gaussian_kernel(max(length / 3.5, 0.3), 0.35, rng.uniform(0, np.pi), taps=max(taps, 3))
    return np.asarray(cv2.filter2D(image, -1, kernel), np.float32)


def rain(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Bright slanted streaks over a slightly veiled frame."""
    height, width = image.shape[:2]
    drops = (rng.random((height, width)) > 1 - 0.006 * severity).astype(np.float32)
    length = max(int(0.09 * min(height, width)), 3) | 1
    streak = gaussian_kernel(length / 3, 0.5, np.pi / 2 + rng.uniform(-0.35, 0.35), taps=length)
    streaks = np.clip(cv2.filter2D(drops, -1, streak / streak.max()), 0, 1)[..., None]
    veiled = image * (1 - 0.04 * severity) + 0.03 * severity
    return np.clip(veiled + (0.3 + 0.08 * severity) * streaks * (1 - veiled), 0, 1).astype(np.float32)


def haze(image: Image, severity: int, rng: np.random.Generator, depth: NDArray[np.float32] | None) -> Image:
    """Koschmieder's law: J t + A (1 - t) with t = exp(-beta d); without a depth map, far at the top."""
    if depth is None:
        depth = np.repeat(np.linspace(8, 2, len(image), dtype=np.float32)[:, None], image.shape[1], 1)
    t = np.exp(-0.05 * severity * depth)[..., None]
    air = np.float32(rng.uniform(0.75, 0.95))
    return np.clip(image * t + air * (1 - t), 0, 1).astype(np.float32)


def snow(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Flakes of three sizes, the near ones out of focus, over a lifted, paler frame."""
    height, width = image.shape[:2]
    grey = image.mean(2, keepdims=True)
    x = image + 0.08 * severity * (0.6 * grey + 0.35 - image)
    for share, sigma in ((0.004, 0.5), (0.0016, 1.0), (0.0006, 2.0)):
        radius = sigma * min(height, width) / 256
        flakes = (rng.random((height, width)) > 1 - share * severity).astype(np.float32)
        flakes = cv2.GaussianBlur(flakes, (0, 0), max(radius, 0.4)) * 2 * np.pi * max(radius, 0.4) ** 2
        x = x + np.clip(1.2 * flakes, 0, 1)[..., None] * (0.97 - x)
    return np.clip(x, 0, 1).astype(np.float32)


def low_light(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Fewer photons (two fifths to a fifteenth), the sensor's noise, 8 bits, and a gain that leaves the frame dark."""
    light = 0.4 / (1 + 1.2 * (severity - 1))
    dark = image**1.2 * light
    dark = dark + np.sqrt(0.0015**2 + 0.0004 * dark) * rng.standard_normal(image.shape, np.float32)
    return np.clip(to_float(to_uint8(dark)) * (0.7 - 0.11 * severity) / light, 0, 1).astype(np.float32)


SEVERITIES = (1, 2, 3, 4, 5)
_WITH_SEVERITY: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "noise": noise,
    "blur": blur,
    "rain": rain,
    "snow": snow,
    "low-light": low_light,
}
DEGRADATIONS = ("mix-a", "mix-b", *_WITH_SEVERITY, "haze")


def degrade(
    image: Image,
    name: str,
    rng: np.random.Generator,
    *,
    severity: int = 3,
    depth: NDArray[np.float32] | None = None,
) -> Image:
    """Apply a degradation by name. Mix-A and Mix-B have no severity; haze takes `depth` (H, W) in metres where there is one."""
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} is not one of 1 (slight) to 5 (severe)")
    if name == "mix-a":
        return mix_a(image)
    if name == "mix-b":
        return mix_b(image, rng)
    if name == "haze":
        return haze(image, severity, rng, depth)
    if name not in _WITH_SEVERITY:
        raise unknown_word("degradation", name, DEGRADATIONS)
    return _WITH_SEVERITY[name](image, severity, rng)
