"""A result as a picture for people: degraded and restored side by side, the task's answer drawn in; in a window or a video."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.drawing import draw_answer
from tasktok_edge.runtimes.stream import Streamed

SIDE = 384  # pixels of the height of a shown or written frame
WINDOW = "tasktok-edge"
KEYS = (27, ord("q"))  # which end it


def drawn(one: Streamed) -> tuple[NDArray[np.uint8], str]:
    """The restored frame with the answer drawn over it, and a label as words."""
    return draw_answer(one.restored, one.answer) if one.answer is not None else (one.restored, "")


def side_by_side(one: Streamed) -> NDArray[np.uint8]:
    """Degraded and restored, `SIDE` pixels high, with what it took written into it."""
    right, said = drawn(one)
    width = max(2, round(one.frame.shape[1] * SIDE / one.frame.shape[0]) // 2 * 2)  # even, as codecs want it
    both = np.concatenate([np.asarray(cv2.resize(f, (width, SIDE)), np.uint8) for f in (one.frame, right)], axis=1)
    told = f"{said}  {'still' if one.still else f'{one.inference_ms:.1f} ms'}".strip()
    for colour, thick in ((0, 3), (255, 1)):
        cv2.putText(both, told, (width + 8, SIDE - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (colour,) * 3, thick, cv2.LINE_AA)
    return both


class Film:
    """A sink: the pictures as a video file."""

    def __init__(self, file: Path) -> None:
        from tasktok_edge.runtimes.video import VideoFile  # PyAV is asked for where a file is

        self.name = str(file)
        self._file = VideoFile(file)

    def write(self, one: Streamed) -> None:
        self._file.write(side_by_side(one), one.captured_s)

    def close(self) -> None:
        self._file.close()


class Window:
    """A sink: the pictures on the screen."""

    name = "window"

    def write(self, one: Streamed) -> None:
        cv2.imshow(WINDOW, cv2.cvtColor(side_by_side(one), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        cv2.destroyAllWindows()

    @staticmethod
    def left() -> bool:
        """Let the window work; whether somebody pressed Esc or q."""
        return cv2.waitKey(1) in KEYS


def has_windows() -> bool:
    """Whether this OpenCV can show them: the headless build cannot."""
    try:
        cv2.namedWindow(WINDOW)
        cv2.destroyWindow(WINDOW)
    except cv2.error:
        return False
    return True
