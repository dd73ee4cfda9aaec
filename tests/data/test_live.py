"""Moving scenes as a camera without a camera."""

import itertools

import numpy as np
import pytest

from tasktok_edge.data.live import FPS, degraded_clip, moving_scenes
from tasktok_edge.data.scenes import make_scene, render
from tasktok_edge.errors import UsageError

TIMES = [0, 1 / FPS, 1 / FPS]


@pytest.mark.parametrize(("degradation", "anew"), [("mix-b", False), ("haze", False), ("noise", True), ("snow", True)])
def test_a_clip_moves_and_its_noise_is_drawn_anew_where_it_is_of_the_moment(degradation: str, anew: bool) -> None:
    clip = list(degraded_clip("val", 3, TIMES, degradation=degradation, size=64))
    again = list(degraded_clip("val", 3, TIMES, degradation=degradation, size=64))
    for i, (truth, frame) in enumerate(clip):
        want = render(make_scene("val", 3), size=64, time=TIMES[i])
        np.testing.assert_array_equal(truth.image, want.image)
        np.testing.assert_array_equal(frame, again[i][1])
        assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    assert not np.array_equal(clip[0][0].image, clip[1][0].image)
    assert np.array_equal(clip[1][1], clip[2][1]) != anew


def test_a_lens_stays_as_it_is_for_a_clip() -> None:
    """Mix-B of the same picture is the same at any place of a clip."""
    late = list(degraded_clip("val", 3, [0, 0, 0], degradation="mix-b", size=64))
    assert all(np.array_equal(late[0][1], frame) for _, frame in late)


def test_scenes_go_on() -> None:
    first = list(itertools.islice(moving_scenes("low-light:1"), 2))
    assert all(frame.shape == (256, 256, 3) for frame in first) and not np.array_equal(*first)


@pytest.mark.parametrize(
    ("words", "told"), [("snwo", "did you mean 'snow'"), ("snow:9", "severity 9"), ("snow:x", "severity x"), ("snow:", None)]
)
def test_what_is_no_degradation_is_told(words: str, told: str | None) -> None:
    if told is None:
        moving_scenes(words)
        return
    with pytest.raises(UsageError, match=told):
        moving_scenes(words)
