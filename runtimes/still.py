"""Whether a scene is the one that was restored last: then it is not restored again."""

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCKS = 24  # along the short side
LEVELS = 2.5  # of 255: how much a block may change; the README has what that misses and what it saves


_Seen = tuple[tuple[int, ...], NDArray[np.float32]]  # a frame's shape, and the means of its blocks


class Still:
    """Compares frames with the one that was kept last, not with the one before: a slow change adds up until it is seen."""

    def __init__(self) -> None:
        self._kept: _Seen | None = None
        self._seen: _Seen | None = None

    def change(self, frame: NDArray[np.uint8]) -> float:
        """The largest change, in levels of 255, of the mean of any block in any channel; infinity where nothing was kept.

        Something of a share `a` of a block that differs by `c` levels from what was there changes the block by a * c.
        """
        self._seen = shape, means = frame.shape, _means(frame)
        if self._kept is None or self._kept[0] != shape:
            return float("inf")
        return float(np.abs(means - self._kept[1]).max())

    def keep(self) -> None:
        """Compare with the frame that was measured last from now on."""
        self._kept = self._seen


def _means(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = frame.shape[:2]
    side = max(min(height, width) / BLOCKS, 1)
    size = (max(round(width / side), 1), max(round(height / side), 1))
    # OpenCV is ten times as fast where each mean is of the same whole pixels: that far in one step, the rest on few pixels.
    whole = max(k for k in range(1, max(int(side / 3), 1) + 1) if height % k == width % k == 0)
    small = cv2.resize(frame, (width // whole, height // whole), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, size, interpolation=cv2.INTER_AREA).astype(np.float32)
