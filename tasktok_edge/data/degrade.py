"""Degradations: the paper's Mix-A and Mix-B, and six single ones, behind one `degrade`.

Images are RGB (H, W, 3) float32 in [0, 1], and stay so. Everything random comes from the generator given.

>>> image = np.full((32, 48, 3), 0.5, np.float32)
>>> degrade(image, "haze", np.random.default_rng(0), severity=2).shape
(32, 48, 3)
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from tasktok_edge.data import weather
from tasktok_edge.data.shapes import Bytes, Floats
from tasktok_edge.errors import UsageError, unknown_word

# The released recipe (facts/tasktok.md 2.5).
KERNEL_PX = 41
SIGMA_PX = (0.1, 8.0)
SCALE = (1.0, 16.0)
NOISE_255 = (0.0, 10.0)
QUALITY = (50.0, 100.0)
MIX_A_SCALE = 8.0
MIX_A_QUALITY = 75
SEVERITIES = range(1, 6)


@dataclass(frozen=True, slots=True)
class MixB:
    """One draw of Mix-B; applying it twice gives the same image."""

    sigma_x: float  # pixels
    sigma_y: float
    angle_rad: float
    scale: float  # the image is this much smaller in the middle of the recipe
    noise_sigma: float  # of an image in [0, 1]
    quality: int  # of JPEG
    noise_seed: int


def to_float(image: Bytes) -> Floats:
    """Return uint8 0..255 as float32 0..1."""
    return image.astype(np.float32) / np.float32(255)


def to_uint8(image: Floats) -> Bytes:
    """Return float 0..1 as uint8: clipped, and rounded to the nearest level."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def gaussian_kernel(sigma_x: float, sigma_y: float, angle_rad: float) -> Floats:
    """Return the normalised Gaussian with its first axis turned by `angle_rad`. # (KERNEL_PX, KERNEL_PX)"""
    axis = np.arange(KERNEL_PX, dtype=np.float64) - KERNEL_PX // 2
    x, y = np.meshgrid(axis, axis)
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    along, across = (c * x + s * y) / sigma_x, (c * y - s * x) / sigma_y
    kernel = np.exp(-0.5 * (along * along + across * across))
    return (kernel / kernel.sum()).astype(np.float32)


def jpeg(image: Floats, quality: int) -> Floats:
    """Return the image after JPEG of this quality, through 8 bit."""
    # cv2 codes BGR: the other order would sample the chroma of red as that of blue.
    done, code = cv2.imencode(".jpg", to_uint8(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return to_float(decoded[..., ::-1].astype(np.uint8, copy=False))


def _resize(image: Floats, width: int, height: int) -> Floats:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _smaller(image: Floats, scale: float) -> Floats:
    """Return the image at int(side // scale), bilinear without antialiasing; a side never falls to 0."""
    height, width = image.shape[:2]
    return _resize(image, max(1, int(width // scale)), max(1, int(height // scale)))


def draw_mix_b(rng: np.random.Generator) -> MixB:
    """Draw the parameters of Mix-B: an isotropic and an anisotropic blur are equally likely."""
    isotropic = rng.random() < 0.5
    sigma_x, sigma_y = rng.uniform(*SIGMA_PX), rng.uniform(*SIGMA_PX)
    angle = rng.uniform(-np.pi, np.pi)
    return MixB(
        sigma_x=sigma_x,
        sigma_y=sigma_x if isotropic else sigma_y,
        angle_rad=0.0 if isotropic else angle,
        scale=rng.uniform(*SCALE),
        noise_sigma=rng.uniform(*NOISE_255) / 255,
        quality=int(rng.uniform(*QUALITY)),
        noise_seed=int(rng.integers(2**31)),
    )


def apply_mix_b(image: Floats, draw: MixB) -> Floats:
    """Blur, shrink, add noise and clip, JPEG, grow back."""
    if draw.sigma_x == draw.sigma_y:
        # An isotropic Gaussian is the product of its row and column: the same numbers in a third of the time.
        line = gaussian_kernel(draw.sigma_x, draw.sigma_x, 0.0).sum(axis=0)
        blurred = cv2.sepFilter2D(image, -1, line, line, borderType=cv2.BORDER_REFLECT_101)
    else:
        kernel = gaussian_kernel(draw.sigma_x, draw.sigma_y, draw.angle_rad)
        blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    small = _smaller(blurred.astype(np.float32, copy=False), draw.scale)
    rng = np.random.default_rng(draw.noise_seed)
    noisy = np.clip(small + rng.standard_normal(small.shape, np.float32) * np.float32(draw.noise_sigma), 0, 1)
    return _resize(jpeg(noisy, draw.quality), image.shape[1], image.shape[0])


def mix_b(image: Floats, rng: np.random.Generator) -> Floats:
    """Apply a fresh draw of Mix-B."""
    return apply_mix_b(image, draw_mix_b(rng))


def mix_a(image: Floats) -> Floats:
    """Apply Mix-A, which has nothing random: a scale of 8 and JPEG 75, no blur, no noise."""
    return _resize(jpeg(_smaller(image, MIX_A_SCALE), MIX_A_QUALITY), image.shape[1], image.shape[0])


def _mix_a(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    return mix_a(image)


def _mix_b(image: Floats, rng: np.random.Generator, severity: int, depth: Floats | None) -> Floats:
    return mix_b(image, rng)


Degradation = Callable[[Floats, np.random.Generator, int, Floats | None], Floats]

DEGRADATIONS: dict[str, Degradation] = {
    "mix-a": _mix_a,
    "mix-b": _mix_b,
    "noise": weather.noise,
    "blur": weather.blur,
    "rain": weather.rain,
    "haze": weather.haze,
    "snow": weather.snow,
    "low-light": weather.low_light,
}


def degrade(
    image: Floats, name: str, rng: np.random.Generator, *, severity: int = 3, depth: Floats | None = None
) -> Floats:
    """Apply the degradation called `name`.

    `severity` is 1 to 5; the two mixes are fixed recipes and have none. `depth` (H, W) in metres is used by haze alone,
    which assumes a slanted plane without it. Raises UsageError for an unknown name or severity.
    """
    if name not in DEGRADATIONS:
        raise unknown_word("degradation", name, DEGRADATIONS)
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} is not one of 1 (slight) to 5 (hard): give one of these")
    return DEGRADATIONS[name](image, rng, severity, depth)
