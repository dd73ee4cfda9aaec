"""Moving scenes as a camera without a camera gives them: endless, degraded, one scene after the other."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.degrade import DEGRADATIONS, SEVERITIES, degrade, to_float, to_uint8
from tasktok_edge.data.scenes import Frame, Split, make_scene, render
from tasktok_edge.errors import UsageError, unknown_word

FPS = 15.0
SECONDS = 8  # of a scene
LIVE_STREAM = 6  # of the seeds of degradations
STEADY = ("mix-b", "blur", "haze")  # drawn once for a clip


def degraded_clip(
    split: Split, index: int, times: Sequence[float], *, degradation: str, severity: int = 3, size: int = 256
) -> Iterator[tuple[Frame, NDArray[np.uint8]]]:
    """Yield a scene at `times`, in seconds, with its labels, and what a camera gives of it, (size, size, 3) uint8 RGB.

    What is drawn of a degradation stays for the clip where it is of the lens, the link or the air; noise, rain and snow are
    drawn anew for each frame.
    """
    scene = make_scene(split, index)
    for i, time in enumerate(times):
        truth = render(scene, size=size, time=time)
        seed = (LIVE_STREAM, *scene.seed) if degradation in STEADY else (LIVE_STREAM, *scene.seed, i)
        rng = np.random.default_rng(seed)
        image = degrade(to_float(truth.image), degradation, rng, severity=severity, depth=truth.depth)
        yield truth, to_uint8(image)


def moving_scenes(words: str) -> Iterator[NDArray[np.uint8]]:
    """Give endless frames (256, 256, 3) uint8 RGB of the split `val`; `words` is nothing, "snow" or "snow:4".

    UsageError for an unknown degradation or severity.
    """
    degradation, _, told = words.partition(":")
    degradation = degradation or "mix-b"
    if degradation not in DEGRADATIONS:
        raise unknown_word("degradation", degradation, DEGRADATIONS)
    severity = int(told) if told.isdecimal() else 3
    if severity not in SEVERITIES or (told and not told.isdecimal()):
        raise UsageError(f"severity {told} is not one of 1 (slight) to 5 (severe)")
    return _endless(degradation, severity)


def _endless(degradation: str, severity: int) -> Iterator[NDArray[np.uint8]]:
    times = [i / FPS for i in range(int(SECONDS * FPS))]
    for index in itertools.count():
        for _, frame in degraded_clip("val", index, times, degradation=degradation, severity=severity):
            yield frame
