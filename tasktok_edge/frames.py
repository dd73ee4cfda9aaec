"""Frames on their way in and out of a function: check, cut, resize, blend, round.

A function runs at one fixed square size; a frame may have any. A `Layout` says how the one lies on the other, of two kinds:
- "windows": square windows of the frame's short side, overlapping so that they end at the borders; the answers are blended with
  a Hann weight. What TaskTok does for segmentation, and the scenes models for everything.
- "pad": the whole frame, its long side brought to the function's, the rest of the square filled by reflection. What TaskTok
  does for detection.

Sizes are changed in one of two ways: "bicubic" without antialias, as torch.nn.functional.interpolate(mode="bicubic",
align_corners=False) and as TaskTok does, which aliases where it shrinks; or "area", which averages there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import FrameError
from tasktok_edge.manifest import Framing, Resize

HANN_FLOOR = 1e-6  # a border pixel seen by one window alone must keep its value, and Hann is 0 there
WEIGHT_FLOOR = 1e-8  # nothing is divided by 0
MAX_CHANNELS = 4  # what cv2.resize takes at once when it averages areas
NORM_L2, CV_8U = cv2.NORM_L2, cv2.CV_8U
Pixels = Literal["rgb", "bgr", "nv12", "i420"]
PIXELS: tuple[Pixels, ...] = get_args(Pixels)
YUV: dict[str, int] = {"nv12": cv2.COLOR_YUV2RGB_NV12, "i420": cv2.COLOR_YUV2RGB_I420}
MAX_ROUNDED = 2.0**31 / 255  # what cv2 rounds goes through int32, and wraps around beyond


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the frame that a function sees at once: `height` x `width` pixels at (top, left)."""

    top: int
    left: int
    height: int
    width: int


def check_frame(frame: object) -> NDArray[np.uint8]:
    """Return `frame` itself where it is a (H, W, 3) uint8 picture; raise FrameError, with what to do, where it is not.

    >>> check_frame(np.zeros((48, 64, 3), np.uint8)).shape
    (48, 64, 3)
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        return frame
    raise FrameError(f"a frame is (height, width, 3) uint8 RGB, this is {_wrong(frame)}")


def as_rgb(frame: object, pixels: Pixels) -> NDArray[np.uint8]:
    """Give a camera's frame as (H, W, 3) uint8 RGB; `frame` itself where it is that, and never written to.

    "nv12" and "i420" are planes of YUV 4:2:0 below one another, (H * 3 / 2, W), W and H even, BT.601 with Y in 16..235, as
    cameras and video decoders give them. Raises FrameError where the frame is not of that kind.

    >>> as_rgb(np.full((3, 2), 128, np.uint8), "nv12").tolist()
    [[[130, 130, 130], [130, 130, 130]], [[130, 130, 130], [130, 130, 130]]]
    """
    if pixels == "rgb":
        return check_frame(frame)
    if pixels == "bgr":
        return check_frame(frame)[..., ::-1]
    planar = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 2 and frame.size > 0
    if not planar or frame.shape[0] % 3 or frame.shape[1] % 2:  # type: ignore[attr-defined]
        seen = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__qualname__
        raise FrameError(
            f"a frame of {pixels} is (height * 3 / 2, width) uint8, both even: Y, then U and V at half the size; this is {seen}"
        )
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), YUV[pixels]), np.uint8)  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Layout:
    """How a frame of `height` x `width` pixels lies on a function's squares of `size` pixels; made by `lay_out`."""

    height: int
    width: int
    size: int
    resize: Resize
    windows: tuple[Window, ...]
    is_plain: bool  # the frame is the square

    def cut(self, frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Cut a frame into what the function sees of it, a contiguous (1, size, size, 3) for each window."""
        if self.is_plain:
            return [np.ascontiguousarray(frame)[None]]  # no copy where it is that already
        return [crop_resize(frame, window, self.size, self.resize)[None] for window in self.windows]

    def tile(self, output: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
        """Bring what the function gave for a window, (size, size, C), to the window's own size, without what was padded."""
        rows, columns = fitted(window, self.size)
        return resize(output[:rows, :columns], window.height, window.width, self.resize)

    def join(self, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Join what the function gave for all windows, (size, size, C) each, to (height, width, C)."""
        if self.is_plain:
            return outputs[0]
        tiles = [self.tile(output, window) for output, window in zip(outputs, self.windows, strict=True)]
        return blend(tiles, self.windows, self.height, self.width)


def lay_out(height: int, width: int, size: int, *, resize: Resize = "area", framing: Framing = "windows") -> Layout:
    """Lay a frame out on a function's squares.

    >>> lay_out(4, 10, 8, framing="pad").windows
    (Window(top=0, left=0, height=4, width=10),)
    """
    whole = Window(0, 0, height, width)
    parts = (whole,) if framing == "pad" else tuple(windows(height, width))
    return Layout(height, width, size, resize, parts, is_plain=height == width == size)


def windows(height: int, width: int) -> list[Window]:
    """Cut a frame into ceil(long / short) square windows of the short side, evenly spread from border to border.

    >>> [w.left for w in windows(4, 10)]
    [0, 3, 6]
    """
    side, long = min(height, width), max(height, width)
    n = -(-long // side)
    # Python's round, halves to even, as the TaskTok evaluation does
    starts = [round(i * (long - side) / (n - 1)) for i in range(n)] if n > 1 else [0]
    return [Window(0, s, side, side) if width >= height else Window(s, 0, side, side) for s in starts]


def fitted(window: Window, size: int) -> tuple[int, int]:
    """Give the rows and columns of the function's square that a window takes: the long side all, the short one its share.

    The share is rounded down, as TaskTok's detection does; it does so in floating point, which may lose a whole pixel more.

    >>> fitted(Window(0, 0, 375, 500), 512)
    (384, 512)
    """
    long = max(window.height, window.width)
    return max(window.height * size // long, 1), max(window.width * size // long, 1)


def resize(image: NDArray[Any], height: int, width: int, how: Resize = "area") -> NDArray[Any]:
    """Resize (H, W, C) float32 or uint8, any C; give the image itself if it has that size.

    "area" averages areas if a side shrinks, because bicubic without a filter would alias what the model shall restore, and is
    bicubic else. "bicubic" is bicubic always: torch's to 1e-6 (its float64; its float32 is off by 4e-5 at some sizes), uint8
    computed in float32, then rounded, halves to even, and clipped.
    """
    if image.shape[:2] == (height, width):
        return image
    if how == "bicubic":
        found = _resize(image.astype(np.float32, copy=False), height, width, cv2.INTER_CUBIC)
        return np.clip(np.rint(found), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else found
    shrinks = height < image.shape[0] or width < image.shape[1]
    return _resize(image, height, width, cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize(image: NDArray[Any], height: int, width: int, interpolation: int) -> NDArray[Any]:
    parts = [
        cv2.resize(image[..., i : i + MAX_CHANNELS], (width, height), interpolation=interpolation).reshape(height, width, -1)
        for i in range(0, image.shape[2], MAX_CHANNELS)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def pad_to(image: NDArray[Any], size: int) -> NDArray[Any]:
    """Pad (H, W, C) at the right and the bottom to at least `size` each way; itself if it is that.

    The image is reflected at its last row and column, which are not repeated; where that ends, the last line is.

    >>> pad_to(np.array([[[1], [2]]]), 3)[..., 0].tolist()
    [[1, 2, 1], [1, 2, 1], [1, 2, 1]]
    """
    missing = [max(size - side, 0) for side in image.shape[:2]]
    mirrored = [min(n, side - 1) for n, side in zip(missing, image.shape[:2], strict=True)]
    rest = [n - m for n, m in zip(missing, mirrored, strict=True)]
    if any(mirrored):
        image = np.pad(image, [(0, mirrored[0]), (0, mirrored[1]), (0, 0)], mode="reflect")
    return np.pad(image, [(0, rest[0]), (0, rest[1]), (0, 0)], mode="edge") if any(rest) else image


def crop_resize(frame: NDArray[np.uint8], window: Window, size: int, how: Resize = "area") -> NDArray[np.uint8]:
    """Cut `window` out of a frame and bring it to (size, size, 3), contiguous; no copy where it is that already."""
    if frame.shape[:2] != (window.height, window.width):
        frame = frame[window.top : window.top + window.height, window.left : window.left + window.width]
    return np.ascontiguousarray(pad_to(resize(frame, *fitted(window, size), how), size))


@lru_cache(maxsize=2)
def _shares(places: tuple[Window, ...], height: int, width: int) -> tuple[NDArray[np.float32], ...]:
    """What each window has of the sum at its pixels, (side, side): a Hann window's weight of all that lie there."""
    line = np.hanning(places[0].height)
    weight = np.maximum(np.outer(line, line), HANN_FLOOR)
    total = np.zeros((height, width))
    parts = [(slice(w.top, w.top + w.height), slice(w.left, w.left + w.width)) for w in places]
    for part in parts:
        total[part] += weight
    shares = tuple((weight / np.maximum(total[part], WEIGHT_FLOOR)).astype(np.float32) for part in parts)
    for share in shares:
        share.flags.writeable = False  # all callers have the same
    return shares


def blend(tiles: Sequence[NDArray[np.float32]], places: Sequence[Window], height: int, width: int) -> NDArray[np.float32]:
    """Blend float32 tiles (side, side, C) at their square windows into (height, width, C); a single tile comes back as is."""
    if len(tiles) == 1:
        return tiles[0]
    total = np.zeros((height, width, tiles[0].shape[2]), np.float32)
    for tile, w, share in zip(tiles, places, _shares(tuple(places), height, width), strict=True):
        part = total[w.top : w.top + w.height, w.left : w.left + w.width]
        for channel in range(tile.shape[2]):  # of a share for all channels at once NumPy makes loops of three
            part[..., channel] += tile[..., channel] * share
    return total


def magnitude(values: NDArray[np.float32]) -> float:
    """Bound the magnitude of every value by the Euclidean norm; NaN or infinity if one is that."""
    return cv2.norm(values.reshape(-1), NORM_L2)  # one pass, summed in float64


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn (H, W, 3) float32, nominally in [0, 1], into uint8: times 255, round halves to even, clip.

    Raises FrameError where it holds NaN or infinity.
    """
    # An engine leaves cold caches behind, where each function of a library costs 10 to 40 µs before it looks at a pixel, and
    # keywords count too: so two calls, of cv2, and not the six of NumPy that would do the same.
    rounded: NDArray[Any] = cv2.addWeighted(image, 255.0, image, 0.0, 0.0, None, CV_8U)
    bound = cv2.norm(image, NORM_L2)
    if bound < MAX_ROUNDED:
        return rounded
    if not math.isfinite(bound):
        raise FrameError("the picture holds NaN or infinity")
    return np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
