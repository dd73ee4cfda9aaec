"""How a picture and its labels become what the model is shown: TaskTok's geometry of training and of evaluation.

With a generator it is the random geometry of training, without one the fixed geometry of evaluation. A size is (height, width).
Pictures are resized by Pillow and, for detection, by OpenCV, as upstream does: their cubics differ (Pillow filters where it
shrinks).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasktok_edge.data.folders import IGNORED, Mask, Picture
from tasktok_edge.frames import pad_to

SEG_FACTOR = (0.5, 2.0)  # of the short side, in training
FLIP_SHARE = 0.5


@dataclass(frozen=True)
class Sizes:
    """Sides in pixels; the defaults are the official ones.

    >>> Sizes.scaled(64)
    Sizes(image=64, cls_short=72, seg_short=70)
    """

    image: int = 512  # what the model sees; detection's long side
    cls_short: int = 576  # before the crop
    seg_short: int = 560

    @classmethod
    def scaled(cls, image: int) -> "Sizes":
        """Keep the official proportions at another size of the model."""
        return cls(image, max(round(image * 576 / 512), image), max(round(image * 560 / 512), 1))


OFFICIAL = Sizes()


def short_side_size(size: tuple[int, ...], short: int, *, factor: float = 1.0) -> tuple[int, int]:
    """Give the size whose short side is `short * factor`, rounded down.

    >>> short_side_size((375, 500), 576)
    (576, 768)
    """
    height, width = size[:2]
    # Multiplied before divided: 576 * 500 / 375 is 768 exactly, 576 * (500 / 375) need not be.
    long = short * max(height, width) / min(height, width)
    short_px, long_px = max(int(short * factor), 1), max(int(long * factor), 1)
    return (short_px, long_px) if width >= height else (long_px, short_px)


def long_side_size(size: tuple[int, ...], long: int) -> tuple[int, int]:
    """Give the size whose long side is `long`; the other is rounded down.

    >>> long_side_size((375, 500), 512)
    (384, 512)
    """
    height, width = size[:2]
    scale = long / max(height, width)
    return (long, max(int(width * scale), 1)) if height >= width else (max(int(height * scale), 1), long)


def for_cls(image: Picture, sizes: Sizes, rng: np.random.Generator | None = None) -> Picture:
    """Short side to `cls_short`, crop a square: random and perhaps mirrored in training, else the centre."""
    image = _resize(image, short_side_size(image.shape, sizes.cls_short), Image.Resampling.BICUBIC)
    if rng is None:
        top, left = ((side - sizes.image) // 2 for side in image.shape[:2])
    else:
        top, left = _random_place(image.shape[:2], sizes.image, rng)
    image = image[top : top + sizes.image, left : left + sizes.image]
    return image[:, ::-1] if _flips(rng) else image


def for_seg(image: Picture, mask: Mask, sizes: Sizes, rng: np.random.Generator | None = None) -> tuple[Picture, Mask]:
    """Short side to `seg_short`; in training times a factor, padded, cropped to a random square, mirrored or not."""
    factor = 1.0 if rng is None else rng.uniform(*SEG_FACTOR)
    size = short_side_size(image.shape, sizes.seg_short, factor=factor)
    image, mask = _resize(image, size, Image.Resampling.BICUBIC), resize_mask(mask, size)
    if rng is None:
        return image, mask
    missing = [(0, max(sizes.image - side, 0)) for side in size]
    image, mask = pad_to(image, sizes.image), np.pad(mask, missing, constant_values=IGNORED)
    top, left = _random_place(mask.shape, sizes.image, rng)
    here = (slice(top, top + sizes.image), slice(left, left + sizes.image))
    image, mask = image[here], mask[here]
    return (image[:, ::-1], mask[:, ::-1]) if _flips(rng) else (image, mask)


def for_det(
    image: Picture, boxes: NDArray[np.int64], sizes: Sizes, rng: np.random.Generator | None = None
) -> tuple[Picture, NDArray[np.float32]]:
    """Long side to `image`, not padded, mirrored or not in training; VOC's corners become xyxy (n, 4) from 0."""
    height, width = long_side_size(image.shape, sizes.image)
    scaled = scale_boxes(boxes, image.shape, sizes.image)
    image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    if _flips(rng):
        # Upstream mirrors VOC's inclusive corners as w - x, one pixel off the picture; this is the picture's own mirror.
        image, scaled = image[:, ::-1], np.stack([width - scaled[:, 2], scaled[:, 1], width - scaled[:, 0], scaled[:, 3]], 1)
    return image, scaled


def scale_boxes(boxes: NDArray[np.int64], size: tuple[int, ...], long: int) -> NDArray[np.float32]:
    """Scale VOC's corners (n, 4), counted from 1 and inclusive, to a picture of long side `long`: xyxy from 0, whole pixels.

    Corners are scaled, cut to integers inside the picture, and only then become [xmin - 1, ymin - 1, xmax, ymax].
    """
    height, width = long_side_size(size, long)
    scaled = (boxes * (long / max(size[:2]))).astype(np.int64)
    first = np.maximum(scaled[:, :2], 1) - 1
    last = np.minimum(scaled[:, 2:], (width, height))
    return np.concatenate([first, np.maximum(last, first + 1)], 1).astype(np.float32)  # a sliver keeps one pixel


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Nearest, by Pillow: a label map has no values in between."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _resize(image: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), how))


def _random_place(size: tuple[int, ...], side: int, rng: np.random.Generator) -> tuple[int, int]:
    top, left = (int(rng.integers(n - side + 1)) for n in size)
    return top, left


def _flips(rng: np.random.Generator | None) -> bool:
    return rng is not None and bool(rng.random() < FLIP_SHARE)
