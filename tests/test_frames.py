import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasktok_edge.errors import FrameError
from tasktok_edge.frames import (
    HANN_FLOOR,
    WEIGHT_FLOOR,
    Layout,
    Window,
    blend,
    check_frame,
    crop_resize,
    fitted,
    lay_out,
    magnitude,
    pad_to,
    resize,
    to_uint8,
    windows,
)
from tasktok_edge.manifest import Framing, Resize

Sides = st.integers(1, 60)


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
    assert {(w.height, w.width) for w in found} == {(side, side)}
    starts = [max(w.top, w.left) for w in found]
    assert starts[0] == 0
    assert starts[-1] == long - side
    assert all(b - a <= side for a, b in pairwise(starts))


def test_windows_round_halves_to_even() -> None:
    assert windows(2, 5) == [Window(0, left, 2, 2) for left in (0, 2, 3)]  # 1.5 -> 2
    assert windows(7, 4) == [Window(top, 0, 4, 4) for top in (0, 3)]
    assert [w.left for w in windows(4, 9)] == [0, 2, 5]  # 2.5 -> 2


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([8, 31, 512]))
def test_a_padded_frame_keeps_its_long_side_and_its_proportion(height: int, width: int, size: int) -> None:
    (whole,) = lay_out(height, width, size, framing="pad").windows
    assert whole == Window(0, 0, height, width)
    rows, columns = fitted(whole, size)
    assert max(rows, columns) == size
    assert min(rows, columns) == max(math.floor(Fraction(min(height, width) * size, max(height, width))), 1)


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
    assert crop_resize(frame, Window(0, 0, 8, 8), 8) is frame
    assert resize(frame, 8, 8) is frame


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1], np.s_[..., ::-1]])
def test_views_are_fine(flip: tuple[slice, ...]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)[flip]
    for size in (8, 16, 32):
        out = crop_resize(frame, Window(0, 0, 16, 16), size)
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, crop_resize(frame.copy(), Window(0, 0, 16, 16), size))


@given(st.integers(1, 40), st.integers(1, 40))
def test_blending_what_was_cut_gives_the_frame(height: int, width: int) -> None:
    frame = np.random.default_rng(height * 41 + width).random((height, width, 2), np.float32)
    places = windows(height, width)
    tiles = [frame[w.top : w.top + w.height, w.left : w.left + w.width] for w in places]
    out = blend(tiles, places, height, width)
    np.testing.assert_allclose(out, frame, atol=1e-6)
    if len(tiles) == 1:
        assert out is tiles[0]


def torch_resize(image: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """(H, W, C) by torch, in float64: its float32 puts the taps of some sizes 4e-5 off."""
    import torch
    import torch.nn.functional as F

    planes = torch.from_numpy(np.ascontiguousarray(image, np.float64)).permute(2, 0, 1)[None]
    out = F.interpolate(planes, size=(height, width), mode="bicubic", align_corners=False, antialias=False)
    return np.asarray(out[0].permute(1, 2, 0).numpy(), np.float64)


def torch_hann(side: int) -> NDArray[np.float64]:
    import torch

    line = torch.hann_window(side, periodic=False, dtype=torch.float64)
    return np.asarray((line[:, None] * line[None]).clamp_min(HANN_FLOOR).numpy()[..., None], np.float64)


@settings(deadline=None)
@given(Sides, Sides, Sides, Sides, st.sampled_from([1, 3, 7]))
def test_bicubic_is_torchs_growing_and_shrinking(height: int, width: int, to_height: int, to_width: int, channels: int) -> None:
    pytest.importorskip("torch")
    image = np.random.default_rng(height * 61 + width).random((height, width, channels), np.float32)
    found = resize(image, to_height, to_width, "bicubic")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_resize(image, to_height, to_width), atol=1e-5)


@pytest.mark.parametrize("size", [(375, 512), (512, 375), (700, 512), (512, 128)])
def test_bicubic_is_torchs_at_the_official_size(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).random((size[0], 8, 3), np.float32)
    found = resize(image, size[1], 8, "bicubic")
    np.testing.assert_allclose(found, torch_resize(image, size[1], 8), atol=2e-6)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    single = torch.nn.functional.interpolate(planes, size=(size[1], 8), mode="bicubic", align_corners=False)[0]
    np.testing.assert_allclose(found, single.permute(1, 2, 0), atol=1e-4)  # its index arithmetic is in float32


@settings(deadline=None)
@given(Sides, Sides, Sides, Sides)
def test_bicubic_of_uint8_is_rounded_once_and_clipped(height: int, width: int, to_height: int, to_width: int) -> None:
    pytest.importorskip("torch")
    image = np.random.default_rng(height * 61 + width).choice(np.array([0, 1, 128, 255], np.uint8), (height, width, 3))
    found = resize(image, to_height, to_width, "bicubic")
    assert found.dtype == np.uint8
    exact = torch_resize(image, to_height, to_width)
    sure = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-3  # float32 may decide a tie otherwise
    np.testing.assert_array_equal(found[sure], np.clip(np.rint(exact), 0, 255)[sure])
    assert np.abs(found - np.clip(exact, 0, 255)).max() < 0.502


def test_bicubic_of_uint8_rounds_halves_to_even() -> None:
    pair = np.array([[[1], [2]], [[3], [4]]], np.uint8).repeat(3, axis=2)
    middle = resize(pair, 1, 1, "bicubic")  # all four weigh the same: 2.5
    assert middle.tolist() == [[[2, 2, 2]]]


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([np.uint8, np.float32]))
def test_padding_is_torchs_reflection_then_replication(height: int, width: int, dtype: type) -> None:
    torch = pytest.importorskip("torch")
    size = 24
    image = np.random.default_rng(height * 25 + width).integers(0, 256, (height, width, 3)).astype(dtype)
    want = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    pad = torch.nn.functional.pad
    want = pad(want, (0, min(size - width, width - 1), 0, min(size - height, height - 1)), mode="reflect")
    want = pad(want, (0, size - want.shape[-1], 0, size - want.shape[-2]), mode="replicate")
    found = pad_to(image, size)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, want[0].permute(1, 2, 0))


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_blend_is_the_hann_of_the_official_code(height: int, width: int) -> None:
    pytest.importorskip("torch")
    places = windows(height, width)
    rng = np.random.default_rng(height * 91 + width)
    tiles = [rng.random((w.height, w.width, 2), np.float32) for w in places]
    weight = torch_hann(min(height, width))
    total, weights = np.zeros((height, width, 2)), np.zeros((height, width, 1))
    for tile, w in zip(tiles, places, strict=True):
        here = (slice(w.top, w.top + w.height), slice(w.left, w.left + w.width))
        total[here] += tile * weight
        weights[here] += weight
    np.testing.assert_allclose(blend(tiles, places, height, width), total / np.maximum(weights, WEIGHT_FLOOR), atol=1e-6)


def stand_in(batch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What a function could give for (1, S, S, 3): bent, mixed over channels, and other at every place of the square."""
    x = batch[0].astype(np.float64) / 255
    ramp = np.linspace(0, 0.2, batch.shape[1])
    return x**2 * 0.7 + x[..., ::-1] * 0.2 + ramp[:, None, None] - ramp[None, :, None]


def restored(
    frame: NDArray[np.uint8], layout: Layout, function: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
) -> NDArray[Any]:
    batches = layout.cut(frame)
    assert all(b.shape == (1, layout.size, layout.size, 3) and b.dtype == np.uint8 and b.flags.c_contiguous for b in batches)
    return layout.join([function(b).astype(np.float32) for b in batches])


Run = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (S, S, 3) in 0..255, not rounded, to (S, S, 3)


def official_windows(frame: NDArray[np.uint8], size: int, run: Run) -> NDArray[np.float64]:
    """TaskTok's way with frames that are not square, of which segmentation has many, written down once more with torch."""
    height, width = frame.shape[:2]
    short, long = min(height, width), max(height, width)
    n = math.ceil(long / short)
    total, weights = np.zeros(frame.shape), np.zeros((height, width, 1))
    for i in range(n):
        start = round(i * (long - short) / (n - 1)) if n > 1 else 0
        here = np.s_[:, start : start + short] if width >= height else np.s_[start : start + short]
        total[here] += torch_resize(run(torch_resize(frame[here], size, size)), short, short) * torch_hann(short)
        weights[here] += torch_hann(short)
    return total / np.maximum(weights, WEIGHT_FLOOR)


def official_pad(frame: NDArray[np.uint8], size: int, run: Run) -> NDArray[np.float64]:
    """TaskTok's way with frames for detection, and back to the frame's own size."""
    import torch

    height, width = frame.shape[:2]
    scale = Fraction(size, max(height, width))
    rows, columns = (size, max(int(width * scale), 1)) if height >= width else (max(int(height * scale), 1), size)
    planes = torch.from_numpy(torch_resize(frame, rows, columns)).permute(2, 0, 1)[None]
    for mode, most in (("reflect", (rows - 1, columns - 1)), ("replicate", (size, size))):
        missing = (0, min(size - planes.shape[3], most[1]), 0, min(size - planes.shape[2], most[0]))
        planes = torch.nn.functional.pad(planes, missing, mode=mode)
    return torch_resize(run(planes[0].permute(1, 2, 0).numpy())[:rows, :columns], height, width)


@settings(deadline=None, max_examples=40)
@given(Sides, Sides, st.sampled_from([16, 37]), st.sampled_from(["windows", "pad"]))
def test_a_frame_goes_in_and_out_as_officially(height: int, width: int, size: int, framing: Framing) -> None:
    pytest.importorskip("torch")
    frame = np.random.default_rng(height * 61 + width).integers(0, 256, (height, width, 3), np.uint8)
    layout = lay_out(height, width, size, resize="bicubic", framing=framing)
    batches = iter(layout.cut(frame))

    def run(exact: NDArray[np.float64]) -> NDArray[np.float64]:
        batch = next(batches)
        assert np.abs(batch[0] - np.clip(exact, 0, 255)).max() < 0.501  # rounded; float32 may decide a tie otherwise
        return stand_in(batch)

    want = official_pad(frame, size, run) if framing == "pad" else official_windows(frame, size, run)
    np.testing.assert_allclose(restored(frame, layout, stand_in), want, atol=1e-5)


@given(Sides, Sides, st.sampled_from([8, 16]), st.sampled_from(["area", "bicubic"]), st.sampled_from(["windows", "pad"]))
@settings(deadline=None)
def test_portrait_is_landscape_turned(height: int, width: int, size: int, how: Resize, framing: Framing) -> None:
    frame = np.random.default_rng(height * 61 + width).integers(0, 256, (height, width, 3), np.uint8)
    turned = np.ascontiguousarray(frame.transpose(1, 0, 2))

    def through(picture: NDArray[np.uint8]) -> NDArray[Any]:
        layout = lay_out(*picture.shape[:2], size, resize=how, framing=framing)
        return restored(picture, layout, lambda batch: batch[0] / 255)

    np.testing.assert_allclose(
        through(frame).transpose(1, 0, 2), through(turned), atol=2.5 / 255
    )  # a tie of the input may round either way


@given(Sides, Sides, st.sampled_from([8, 16]), st.sampled_from(["area", "bicubic"]), st.sampled_from(["windows", "pad"]))
@settings(deadline=None)
def test_a_plain_frame_stays_plain(height: int, width: int, size: int, how: Resize, framing: Framing) -> None:
    layout = lay_out(height, width, size, resize=how, framing=framing)
    found = restored(np.full((height, width, 3), 77, np.uint8), layout, lambda batch: batch[0] / 255)
    assert found.shape == (height, width, 3)
    np.testing.assert_array_equal(to_uint8(found), 77)


@pytest.mark.parametrize("shape", [(37, 41, 3), (1, 1, 3), (128, 5, 3)])
def test_to_uint8_rounds_and_clips(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for low, high in ((-0.5, 1.5), (-1e-30, 1e-30), (-8e6, 8e6), (-1e30, 1e30)):
        image = rng.uniform(low, high, shape).astype(np.float32)
        image[0, 0] = 0.5
        before = image.copy()
        want = np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(to_uint8(image), want)
        np.testing.assert_array_equal(image, before)
    halves = ((rng.integers(-9, 300, shape) + 0.5) / 255).astype(np.float32)
    np.testing.assert_array_equal(to_uint8(halves), np.clip(np.rint(halves * np.float32(255)), 0, 255).astype(np.uint8))


def test_to_uint8_of_every_level() -> None:
    every = np.arange(768, dtype=np.float32).reshape(16, 16, 3) % 256
    np.testing.assert_array_equal(to_uint8(every / 255.0), every.astype(np.uint8))


@given(st.integers(0, 104), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_not_finite_is_found_wherever_it_is(at: int, bad: float) -> None:
    image = np.random.default_rng(at).uniform(-1, 2, (5, 7, 3)).astype(np.float32)
    assert np.abs(image).max() <= magnitude(image) < np.inf
    image.flat[at] = bad
    assert not math.isfinite(magnitude(image))
    with pytest.raises(FrameError, match="NaN or infinity"):
        to_uint8(image)
