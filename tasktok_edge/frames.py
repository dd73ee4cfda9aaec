"""Frames on their way in and out of a function: check, cut into square windows, resize, blend, round.

A function runs at one fixed square size; a frame may have any. A frame that is not square is cut into square windows of
its short side, overlapping so that they end at the borders; the answers are blended with a Hann weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import FrameError

HANN_FLOOR = 1e-6  # a border pixel seen by one window alone must keep its value, and Hann is 0 there
WEIGHT_FLOOR = 1e-8  # nothing is divided by 0
MAX_CHANNELS = 4  # what cv2.resize takes at once when it averages areas


@dataclass(frozen=True, slots=True)
class Window:
    """A square of `side` pixels at (top, left)."""

    top: int
    left: int
    side: int


def check_frame(frame: object) -> NDArray[np.uint8]:
    """Return `frame` itself where it is a (H, W, 3) uint8 picture; raise FrameError, with what to do, where it is not.

    >>> check_frame(np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64, 3)
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        return frame
    raise FrameError(f"a frame is (height, width, 3) uint8 RGB, this is {_wrong(frame)}")


def _wrong(frame: object) -> str:
    if not isinstance(frame, np.ndarray):
        return f"{type(frame).__module__}.{type(frame).__qualname__}: give a NumPy array, np.asarray(frame)"
    seen = f"{frame.shape} {frame.dtype}"
    if not frame.size:
        return f"{seen}: it is empty"
    if np.issubdtype(frame.dtype, np.floating):
        bad = "" if np.isfinite(frame).all() else " holding NaN or infinity"
        return f"{seen}{bad}: if it is in [0, 1], multiply by 255 and round, np.rint(frame * 255).astype(np.uint8)"
    if frame.dtype != np.uint8:
        return f"{seen}: bring it to 0..255 and cast, frame.astype(np.uint8)"
    if frame.ndim == 2:
        return f"{seen}: a gray picture needs three channels, np.repeat(frame[..., None], 3, axis=2)"
    if frame.ndim == 4 and frame.shape[0] == 1:
        return f"{seen}: give one frame without the batch axis, frame[0]"
    if frame.ndim == 3 and frame.shape[2] == 4:
        return f"{seen}: drop the alpha channel, frame[..., :3]"
    if frame.ndim == 3 and frame.shape[2] == 1:
        return f"{seen}: a gray picture needs three channels, np.repeat(frame, 3, axis=2)"
    if frame.ndim == 3 and frame.shape[0] == 3:
        return f"{seen}: channels come last, frame.transpose(1, 2, 0)"
    return f"{seen}: it has the wrong shape"


def windows(height: int, width: int) -> list[Window]:
    """Cut a frame into ceil(long / short) square windows of the short side, evenly spread from border to border.

    >>> windows(4, 10)
    [Window(top=0, left=0, side=4), Window(top=0, left=3, side=4), Window(top=0, left=6, side=4)]
    """
    side, long = min(height, width), max(height, width)
    n = -(-long // side)
    # Python's round, halves to even, as the TaskTok evaluation does
    starts = [round(i * (long - side) / (n - 1)) for i in range(n)] if n > 1 else [0]
    return [Window(0, s, side) if width >= height else Window(s, 0, side) for s in starts]


def resize(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize (H, W, C) float32 or uint8, any C: area averaging if a side shrinks, else bicubic; itself if equal.

    Area averaging, because bicubic without a filter would alias what the model shall restore.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    channels = image.shape[2]
    parts = [
        cv2.resize(image[..., i : i + MAX_CHANNELS], (width, height), interpolation=how).reshape(height, width, -1)
        for i in range(0, channels, MAX_CHANNELS)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def crop_resize(frame: NDArray[np.uint8], window: Window, size: int) -> NDArray[np.uint8]:
    """Cut `window` out of a frame and bring it to (size, size, 3), contiguous; no copy where it is that already."""
    if frame.shape[:2] != (window.side, window.side):
        frame = frame[window.top : window.top + window.side, window.left : window.left + window.side]
    return np.ascontiguousarray(resize(frame, size, size))


@lru_cache(maxsize=4)
def _hann(side: int) -> NDArray[np.float32]:
    line = np.hanning(side)
    weight = np.maximum(np.outer(line, line), HANN_FLOOR).astype(np.float32)[..., None]
    weight.flags.writeable = False  # it is shared by all callers
    return weight  # (side, side, 1)


def blend(tiles: Sequence[NDArray[np.float32]], places: Sequence[Window], height: int, width: int) -> NDArray[np.float32]:
    """Blend float32 tiles (side, side, C) at their windows into (height, width, C); a single tile comes back as is."""
    if len(tiles) == 1:
        return tiles[0]
    weight = _hann(places[0].side)
    total = np.zeros((height, width, tiles[0].shape[2]), np.float32)
    weights = np.zeros((height, width, 1), np.float32)
    for tile, w in zip(tiles, places, strict=True):
        rows, columns = slice(w.top, w.top + w.side), slice(w.left, w.left + w.side)
        total[rows, columns] += tile * weight
        weights[rows, columns] += weight
    total /= np.maximum(weights, WEIGHT_FLOOR)
    return total


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn finite (H, W, C) float32, nominally in [0, 1], into uint8: times 255, round halves to even, clip."""
    # NumPy and not cv2: waking cv2's threads costs more than this does at the sizes that functions have.
    scaled = np.multiply(image, np.float32(255))
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)
