"""Moving scenes as a camera without a camera gives them: endless, degraded, one scene after the other."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.degrade import DEGRADATIONS, SEVERITIES, degrade, to_float, to_uint8
from tasktok_edge.data.scenes import Frame, Scene, Split, make_scene, render
from tasktok_edge.errors import UsageError, unknown_word

FPS = 15.0
SECONDS = 8  # of a scene
LIVE_STREAM = 6  # of the seeds of degradations
STEADY = ("mix-b", "blur", "haze")  # whose draw is of the lens, the link or the air, not of the moment


def degraded_clip(
    split: Split, index: int, n: int, *, degradation: str, severity: int = 3, size: int = 256, fps: float = FPS
) -> Iterator[tuple[Frame, NDArray[np.uint8]]]:
    """Yield `n` frames of a scene that moves, with their labels, and what a camera gives of each, (size, size, 3) uint8 RGB.

    What is drawn of a degradation stays for the clip, as a lens or a sensor does; noise, rain and snow are drawn anew.
    """
    scene = make_scene(split, index)
    for i in range(n):
        yield _degraded(scene, i, degradation, severity, size, fps)


def _degraded(scene: Scene, i: int, degradation: str, severity: int, size: int, fps: float) -> tuple[Frame, NDArray[np.uint8]]:
    truth = render(scene, size=size, time=i / fps)
    seed = (LIVE_STREAM, *scene.seed) if degradation in STEADY else (LIVE_STREAM, *scene.seed, i)
    image = degrade(to_float(truth.image), degradation, np.random.default_rng(seed), severity=severity, depth=truth.depth)
    return truth, to_uint8(image)


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
    for index in itertools.count():
        for _, frame in degraded_clip("val", index, int(SECONDS * FPS), degradation=degradation, severity=severity):
            yield frame
