"""Held-out frames: scenes of the split `test`, which no training, calibration or token order ever sees."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.cache import FRAME_SIZE, degrade_scene
from tasktok_edge.data.scenes import Frame, make_scene, render


@dataclass(frozen=True)
class HeldOut:
    """A scene with its labels, and the degraded frame (256, 256, 3) uint8 that a camera would give."""

    truth: Frame
    degraded: NDArray[np.uint8]


# Scenes 0 to 999 of the split were looked at while the shipped models were in training; what is reported comes from others.
FIRST = 1000


def held_out(n: int, *, degradation: str = "mix-b", severity: int = 3, start: int = 0) -> Iterator[HeldOut]:
    """Yield `n` scenes of the test split from `FIRST + start` on, degraded; the same frames for the same arguments, always."""
    for index in range(FIRST + start, FIRST + start + n):
        truth = render(make_scene("test", index), size=FRAME_SIZE)
        yield HeldOut(truth, degrade_scene(truth, "test", index, degradation, severity=severity))
