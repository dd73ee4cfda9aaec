from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktok_edge.errors import FrameError
from tasktok_edge.frames import Window, blend, check_frame, crop_resize, resize, to_uint8, windows


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (None, "NumPy array"),
        ([[1, 2, 3]], "NumPy array"),
        (np.zeros((4, 4, 3), np.float32), "multiply by 255 and round"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4), np.uint8), "gray"),
        (np.zeros((4, 4, 1), np.uint8), "gray"),
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (np.zeros((3, 4, 5), np.uint8), "channels come last"),
        (np.zeros((1, 4, 4, 3), np.uint8), "frame[0]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.array(None), "object"),
    ],
)
def test_wrong_frames_are_told_what_to_do(frame: object, word: str) -> None:
    with pytest.raises(FrameError) as caught:
        check_frame(frame)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_right_frame_is_itself() -> None:
    frame = np.zeros((1, 5, 3), np.uint8)
    assert check_frame(frame) is frame


@given(st.integers(1, 300), st.integers(1, 300))
def test_windows_cover_the_frame(height: int, width: int) -> None:
    found = windows(height, width)
    side, long = min(height, width), max(height, width)
    assert len(found) == -(-long // side)
    assert {w.side for w in found} == {side}
    starts = [max(w.top, w.left) for w in found]
    assert starts[0] == 0
    assert starts[-1] == long - side
    assert all(b - a <= side for a, b in pairwise(starts))


def test_windows_round_halves_to_even() -> None:
    assert windows(2, 5) == [Window(0, 0, 2), Window(0, 2, 2), Window(0, 3, 2)]  # 1.5 -> 2
    assert windows(7, 4) == [Window(0, 0, 4), Window(3, 0, 4)]
    assert [w.left for w in windows(4, 9)] == [0, 2, 5]  # 2.5 -> 2


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 5, 600]))
def test_resize_keeps_a_constant(height: int, width: int, size: int, channels: int) -> None:
    for image in (
        np.full((height, width, channels), 7, np.uint8),
        np.full((height, width, channels), 0.25, np.float32),
    ):
        out = resize(image, size, size)
        assert out.shape == (size, size, channels)
        assert out.dtype == image.dtype
        np.testing.assert_allclose(out, image.flat[0], rtol=1e-5)


def test_resize_shrinks_by_area() -> None:
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    np.testing.assert_allclose(resize(image, 2, 2)[..., 0], [[2.5, 4.5], [10.5, 12.5]])


def test_no_copy_at_the_function_size() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    assert crop_resize(frame, Window(0, 0, 8), 8) is frame
    assert resize(frame, 8, 8) is frame


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1], np.s_[..., ::-1]])
def test_views_are_fine(flip: tuple[slice, ...]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)[flip]
    for size in (8, 16, 32):
        out = crop_resize(frame, Window(0, 0, 16), size)
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, crop_resize(frame.copy(), Window(0, 0, 16), size))


@given(st.integers(1, 40), st.integers(1, 40))
def test_blending_what_was_cut_gives_the_frame(height: int, width: int) -> None:
    frame = np.random.default_rng(height * 41 + width).random((height, width, 2), np.float32)
    places = windows(height, width)
    tiles = [frame[w.top : w.top + w.side, w.left : w.left + w.side] for w in places]
    out = blend(tiles, places, height, width)
    np.testing.assert_allclose(out, frame, atol=1e-6)
    if len(tiles) == 1:
        assert out is tiles[0]


def test_blend_is_the_hann_of_the_official_code() -> None:
    torch = pytest.importorskip("torch")
    places, side = windows(6, 15), 6
    tiles = [np.full((side, side, 1), i, np.float32) for i in range(len(places))]
    line = torch.hann_window(side, periodic=False)
    weight = (line[:, None] * line[None]).clamp_min(1e-6).numpy()
    total, weights = np.zeros((6, 15)), np.zeros((6, 15))
    for i, w in enumerate(places):
        total[:, w.left : w.left + side] += i * weight
        weights[:, w.left : w.left + side] += weight
    np.testing.assert_allclose(blend(tiles, places, 6, 15)[..., 0], total / weights, rtol=1e-4, atol=1e-6)


def test_to_uint8_rounds_and_clips() -> None:
    image = np.random.default_rng(0).uniform(-0.5, 1.5, (37, 41, 3)).astype(np.float32)
    image[0, 0] = [0.5, 1e9, -1e9]
    want = np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(image), want)
    every = np.arange(256, dtype=np.float32).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_uint8(every / 255.0), every.astype(np.uint8))
