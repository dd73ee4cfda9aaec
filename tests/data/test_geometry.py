"""Geometry: the official sizes, and picture, mask and boxes that stay together whatever is cropped, padded or mirrored."""

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tasktok_edge.data.geometry import (
    OFFICIAL,
    Sizes,
    for_cls,
    for_det,
    for_seg,
    long_side_size,
    scale_boxes,
    short_side_size,
)
from tasktok_edge.frames import pad_to

SMALL = Sizes.scaled(64)
COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 230, 30], [30, 30, 230]], np.uint8)
side = st.integers(3, 150)


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows with the column, green with the row: a picture whose pixels say where they come from."""
    rows, columns = np.linspace(0, 255, height), np.linspace(0, 255, width)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.rint(columns)[None], np.rint(rows)[:, None]
    return image


def quarters(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Four colours in the four corners, and the mask 0 to 3 that says which."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 3, width // 4 :] = 1
    mask[height // 3 :, : width // 4] = 2
    mask[height // 3 :, width // 4 :] = 3
    return COLOURS[mask], mask


def test_official_sizes() -> None:
    assert (OFFICIAL.image, OFFICIAL.cls_short, OFFICIAL.seg_short) == (512, 576, 560)
    assert Sizes.scaled(512) == OFFICIAL
    assert short_side_size((375, 500), 560) == (560, 746)
    assert short_side_size((500, 375), 560) == (746, 560)
    assert short_side_size((333, 500), 560, factor=0.5) == (280, 420)
    assert long_side_size((375, 500), 512) == (384, 512)
    assert long_side_size((500, 333), 512) == (512, 340)
    assert long_side_size((400, 400), 512) == (512, 512)


def test_the_official_sizes_are_what_the_defaults_give() -> None:
    image = ramp(375, 500)
    mask, boxes = np.zeros((375, 500), np.uint8), np.array([[1, 1, 500, 375]])
    assert for_cls(image, OFFICIAL).shape == (512, 512, 3)
    assert for_seg(image, mask, OFFICIAL)[0].shape == (560, 746, 3)
    small, scaled = for_det(image, boxes, OFFICIAL)
    assert small.shape == (384, 512, 3)
    assert scaled.tolist() == [[0, 0, 512, 384]]


@settings(max_examples=50, deadline=None)
@given(height=side, width=side, seed=st.none() | st.integers(0, 2**32))
def test_cls_is_a_square_cut_from_the_resized_picture(height: int, width: int, seed: int | None) -> None:
    image = ramp(height, width)
    out = for_cls(image, SMALL, None if seed is None else np.random.default_rng(seed))
    assert out.shape == (64, 64, 3)
    new = short_side_size((height, width), 72)
    whole = np.asarray(Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BICUBIC))
    if seed is None:
        top, left = (new[0] - 64) // 2, (new[1] - 64) // 2
        np.testing.assert_array_equal(out, whole[top : top + 64, left : left + 64])
        return
    places = [
        (top, left, flipped)
        for top in range(new[0] - 63)
        for left in range(new[1] - 63)
        for flipped in (1, -1)
        if np.array_equal(whole[top, left : left + 64][::flipped], out[0])
    ]
    assert any(np.array_equal(whole[top : top + 64, left : left + 64][:, ::f], out) for top, left, f in places)


def test_training_crops_reach_both_ends_and_half_are_mirrored() -> None:
    image = ramp(72, 72)  # nothing to resize: the first pixel tells the place
    outs = [for_cls(image, SMALL, np.random.default_rng(i)) for i in range(400)]
    mirrored = [int(out[0, 0, 0]) > int(out[0, -1, 0]) for out in outs]
    assert 160 < sum(mirrored) < 240  # four deviations of a fair coin
    first = ramp(72, 72)[:9, :9]
    tops = {int(out[0, 0, 1]) for out in outs}
    lefts = {int(out[0, -1 if m else 0, 0]) for out, m in zip(outs, mirrored, strict=True)}
    assert tops == {int(v) for v in first[:, 0, 1]}
    assert lefts == {int(v) for v in first[0, :, 0]}


@settings(max_examples=60, deadline=None)
@given(height=st.integers(12, 150), width=st.integers(12, 150), seed=st.none() | st.integers(0, 2**32))
def test_mask_and_picture_stay_aligned(height: int, width: int, seed: int | None) -> None:
    image, mask = quarters(height, width)
    out, labels = for_seg(image, mask, SMALL, None if seed is None else np.random.default_rng(seed))
    assert out.shape[:2] == labels.shape
    assert labels.shape == ((64, 64) if seed is not None else short_side_size((height, width), 70))
    seen = np.abs(out[:, :, None].astype(int) - COLOURS).sum(-1).argmin(-1)
    known = labels != 255
    assert set(np.unique(labels[known])) <= {0, 1, 2, 3}
    # Off the borders between colours, where cubic and nearest must differ: pixels whose whole neighbourhood is one class.
    near = np.ones((7, 7), np.uint8)
    pure = known & (cv2.erode(labels, near) == cv2.dilate(labels, near))
    np.testing.assert_array_equal(seen[pure], labels[pure])


@settings(max_examples=40, deadline=None)
@given(height=side, width=side, seed=st.integers(0, 2**32))
def test_only_what_was_padded_is_ignored(height: int, width: int, seed: int) -> None:
    mask = np.full((height, width), 7, np.uint8)
    _, out = for_seg(ramp(height, width), mask, SMALL, np.random.default_rng(seed))
    factor = np.random.default_rng(seed).uniform(0.5, 2.0)  # the generator's first number
    new = short_side_size((height, width), 70, factor=factor)
    known = out == 7
    assert known.sum() == min(new[0], 64) * min(new[1], 64)
    assert (out[~known] == 255).all()
    assert known.any(1).tolist() == [row < new[0] for row in range(64)]  # at the bottom; at the right, or mirrored, left


def test_evaluation_masks_are_not_padded() -> None:
    out, mask = for_seg(ramp(10, 20), np.full((10, 20), 7, np.uint8), SMALL)
    assert out.shape == (70, 140, 3)
    assert (mask == 7).all()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(1, 100), layers=st.integers(1, 3))
def test_padding_reflects_then_repeats(height: int, width: int, size: int, layers: int) -> None:
    image = np.random.default_rng(0).random((height, width, layers), np.float32)
    out = pad_to(image, size)
    assert out.shape == (max(size, height), max(size, width), layers)

    def source(i: int, n: int) -> int:
        return i if i < n else max(2 * (n - 1) - i, 0)  # beyond the mirror image: its last line, which is line 0

    rows = [source(i, height) for i in range(out.shape[0])]
    columns = [source(i, width) for i in range(out.shape[1])]
    np.testing.assert_array_equal(out, image[rows][:, columns])


boxes = st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5)


def corners(fractions: list[tuple[float, ...]], height: int, width: int) -> NDArray[np.int64]:
    """VOC's corners, from 1, inclusive, anywhere in the picture."""
    rows = []
    for a, b, c, d in fractions:
        x0, x1 = sorted((1 + int(a * (width - 1)), 1 + int(b * (width - 1))))
        y0, y1 = sorted((1 + int(c * (height - 1)), 1 + int(d * (height - 1))))
        rows.append([x0, y0, x1, y1])
    return np.array(rows)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), fractions=boxes, long=st.sampled_from([8, 64, 512]))
def test_boxes_stay_inside_and_have_an_area(height: int, width: int, fractions: list[tuple[float, ...]], long: int) -> None:
    out = scale_boxes(corners(fractions, height, width), (height, width), long)
    new = long_side_size((height, width), long)
    assert out.dtype == np.float32
    assert (out[:, :2] >= 0).all()
    assert (out[:, 2:] > out[:, :2]).all()
    assert (out[:, 2:] <= (new[1], new[0])).all()
    np.testing.assert_array_equal(out, np.rint(out))
    # A corner is rounded down, and the first one moved by one more pixel.
    exact = corners(fractions, height, width) * (long / max(height, width))
    assert (np.abs(out - exact) <= 2).all()


def test_boxes_are_scaled_cut_and_only_then_moved() -> None:
    given_boxes = np.array([[1, 1, 500, 375], [100, 51, 101, 52], [3, 2, 3, 2]])
    # 512 / 500 = 1.024: 102.4 - 1, 52.2 - 1, 103.4, 53.2; a box of one pixel keeps one
    assert scale_boxes(given_boxes, (375, 500), 512).tolist() == [[0, 0, 512, 384], [101, 51, 103, 53], [2, 1, 3, 2]]
    assert scale_boxes(np.array([[400, 300, 401, 301]]), (375, 500), 50).tolist() == [[39, 29, 40, 30]]


@settings(max_examples=50, deadline=None)
@given(height=st.integers(40, 150), width=st.integers(40, 150), fractions=boxes, seed=st.integers(0, 2**32))
def test_boxes_follow_what_they_are_around(height: int, width: int, fractions: list[tuple[float, ...]], seed: int) -> None:
    given_boxes = corners(fractions[:1], height, width)
    x0, y0, x1, y1 = given_boxes[0]
    assume(min(x1 - x0, y1 - y0) >= 6)
    image = np.zeros((height, width, 3), np.uint8)
    image[y0 - 1 : y1, x0 - 1 : x1] = 255
    for rng in (None, np.random.default_rng(seed)):
        out, scaled = for_det(image, given_boxes, SMALL, rng)
        assert max(out.shape[:2]) == 64
        rows, columns = np.nonzero(out[..., 0] > 127)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (np.abs(scaled[0] - seen) <= 2).all(), (scaled, seen)


def test_detection_is_resized_by_opencv_and_half_are_mirrored() -> None:
    image = ramp(60, 80)
    expected = cv2.resize(image, (64, 48), interpolation=cv2.INTER_CUBIC)
    given_boxes = np.array([[11, 1, 20, 60]])
    plain, straight = for_det(image, given_boxes, SMALL)
    np.testing.assert_array_equal(plain, expected)
    assert straight.tolist() == [[7, 0, 16, 48]]
    turned = 0
    for i in range(200):
        out, moved = for_det(image, given_boxes, SMALL, np.random.default_rng(i))
        flipped = bool(out[0, 0, 0] > out[0, -1, 0])
        turned += flipped
        np.testing.assert_array_equal(out, expected[:, ::-1] if flipped else expected)
        assert moved.tolist() == ([[48, 0, 57, 48]] if flipped else straight.tolist())
    assert 72 < turned < 128  # four deviations of a fair coin


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (1, 1), (3, 3)])
def test_strips_and_dots_are_no_fault(size: tuple[int, int]) -> None:
    image, mask, everything = ramp(*size), np.ones(size, np.uint8), np.array([[1, 1, size[1], size[0]]])
    for rng in (None, np.random.default_rng(0)):
        assert for_cls(image, SMALL, rng).shape == (64, 64, 3)
        assert min(for_seg(image, mask, SMALL, rng)[1].shape) >= 64
        out, scaled = for_det(image, everything, SMALL, rng)
        assert max(out.shape[:2]) == 64
        assert (scaled[0, 2:] - scaled[0, :2]).min() >= 1
