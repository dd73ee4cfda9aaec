"""Degradations: the two recipes step by step, and what holds for all of them."""

from functools import lru_cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasktok_edge.data.degrade import (
    DEGRADATIONS,
    SEVERITIES,
    MixB,
    apply_mix_b,
    degrade,
    draw_mix_b,
    gaussian_kernel,
    mix_a,
    mix_b,
    to_float,
    to_uint8,
)
from tasktok_edge.data.scenes import make_scene, render
from tasktok_edge.errors import UsageError

SINGLE = tuple(name for name in DEGRADATIONS if name not in ("mix-a", "mix-b"))
Image = NDArray[np.float32]


@lru_cache
def picture(index: int = 0, size: int = 128) -> tuple[Image, Image]:
    frame = render(make_scene("val", index), size=size)
    return to_float(frame.image), frame.depth


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def psnr_db(one: Image, other: Image) -> float:
    return float(-10 * np.log10(np.mean((one - other) ** 2, dtype=np.float64) + 1e-12))


def test_bytes_survive_the_way_to_float_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)


def test_to_uint8_clips_and_rounds() -> None:
    values = np.array([-1.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255]


def test_mix_a_is_the_hand_written_recipe() -> None:
    image, _ = picture()
    small = cv2.resize(image, (16, 16), interpolation=cv2.INTER_LINEAR)
    bgr = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)[:, :, ::-1]
    done, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 75])
    assert done
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    expected = cv2.resize(decoded[:, :, ::-1] / np.float32(255), (128, 128), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(mix_a(image), expected, atol=1e-6)


def test_mix_b_is_the_hand_written_recipe() -> None:
    image, _ = picture()
    draw = MixB(3.0, 1.0, 0.5, 2.7, 0.0, 80)
    kernel = np.zeros((41, 41))
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    inverse = np.linalg.inv(turn @ np.diag([9.0, 1.0]) @ turn.T)
    for row in range(41):
        for column in range(41):
            at = np.array([column - 20, row - 20])
            kernel[row, column] = np.exp(-0.5 * at @ inverse @ at)
    blurred = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
    small = cv2.resize(blurred, (int(128 // 2.7), int(128 // 2.7)), interpolation=cv2.INTER_LINEAR)
    bgr = np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)[:, :, ::-1]
    _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    expected = cv2.resize(decoded[:, :, ::-1] / np.float32(255), (128, 128), interpolation=cv2.INTER_LINEAR)
    # A pixel that rounds the other way before JPEG may move a block by a level or two.
    assert psnr_db(apply_mix_b(image, draw, generator()), np.asarray(expected, np.float32)) > 55


def test_mix_b_draws_stay_in_the_recipes_ranges() -> None:
    rng = generator()
    draws = [draw_mix_b(rng) for _ in range(1500)]
    for draw in draws:
        assert 0.1 <= draw.sigma_x < 8
        assert 0.1 <= draw.sigma_y < 8
        assert -np.pi <= draw.angle < np.pi
        assert 1 <= draw.scale < 16
        assert 0 <= draw.noise * 255 < 10
        assert 50 <= draw.quality <= 99
    isotropic = np.mean([draw.sigma_x == draw.sigma_y for draw in draws])
    assert isotropic == pytest.approx(0.5, abs=0.06)
    assert np.mean([draw.scale for draw in draws]) == pytest.approx(8.5, abs=0.5)
    assert {50, 99} <= {draw.quality for draw in draws}


def test_the_kernel_is_normalised_turned_and_a_delta_at_no_blur() -> None:
    kernel = gaussian_kernel(6.0, 2.0, 0.7)
    assert kernel.shape == (41, 41)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    y, x = np.mgrid[-20:21, -20:21]
    covariance = np.array([[np.sum(kernel * x * x), np.sum(kernel * x * y)], [0, np.sum(kernel * y * y)]])
    angle = 0.5 * np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])
    assert angle == pytest.approx(0.7, abs=0.01)
    delta = gaussian_kernel(0.1, 0.1, 0.0)
    assert delta[20, 20] == pytest.approx(1)


def test_mix_b_repeats_by_seed_and_differs_between_seeds() -> None:
    image, _ = picture()
    np.testing.assert_array_equal(mix_b(image, generator(3)), mix_b(image, generator(3)))
    assert np.abs(mix_b(image, generator(3)) - mix_b(image, generator(4))).max() > 0.01


def test_mix_b_of_no_strength_leaves_the_image() -> None:
    image, _ = picture()
    weakest = MixB(sigma_x=0.1, sigma_y=0.1, angle=0.0, scale=1.0, noise=0.0, quality=100)
    # What is left is JPEG's: vivid edges lose half their chroma resolution at any quality.
    assert psnr_db(apply_mix_b(image, weakest, generator()), image) > 28
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    assert psnr_db(apply_mix_b(grey, weakest, generator()), grey) > 45


def test_mix_b_adds_the_noise_it_says() -> None:
    grey = np.full((128, 128, 3), 0.5, np.float32)
    quiet = apply_mix_b(grey, MixB(0.1, 0.1, 0.0, 1.0, 0.0, 100), generator())
    noisy = apply_mix_b(grey, MixB(0.1, 0.1, 0.0, 1.0, 8 / 255, 100), generator())
    assert quiet.std() < 0.002
    # Luminance, because JPEG smooths the chroma: 0.299, 0.587 and 0.114 of three independent channels.
    luminance = noisy @ np.array([0.299, 0.587, 0.114], np.float32)
    assert luminance.std() == pytest.approx(8 / 255 * np.sqrt(0.299**2 + 0.587**2 + 0.114**2), rel=0.1)


@pytest.mark.parametrize("name", SINGLE)
def test_more_severe_is_farther_from_the_clean_image(name: str) -> None:
    means = []
    for severity in SEVERITIES:
        values = []
        for index in range(4):
            image, depth = picture(index)
            values.append(psnr_db(degrade(image, name, generator(index), severity=severity, depth=depth), image))
        means.append(float(np.mean(values)))
    assert means[0] < 45, "severity 1 cannot be seen"
    assert all(np.diff(means) < 0), means


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degrading_repeats_by_seed_and_leaves_its_input(name: str) -> None:
    image, depth = picture()
    before = image.copy()
    one = degrade(image, name, generator(5), depth=depth)
    np.testing.assert_array_equal(one, degrade(image, name, generator(5), depth=depth))
    np.testing.assert_array_equal(image, before)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(DEGRADATIONS)),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    severity=st.integers(1, 5),
    level=st.sampled_from(["black", "white", "random"]),
    with_depth=st.booleans(),
)
def test_any_size_keeps_shape_type_and_range(
    name: str, height: int, width: int, severity: int, level: str, with_depth: bool
) -> None:
    image = generator(1).random((height, width, 3), dtype=np.float32)
    if level != "random":
        image[...] = level == "white"
    depth = np.full((height, width), 3.0, np.float32) if with_depth else None
    out = degrade(image, name, generator(2), severity=severity, depth=depth)
    assert out.shape == image.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6  # resizing and filtering weights sum to 1 up to float32


def test_haze_hides_the_far_more_than_the_near() -> None:
    image = np.zeros((8, 8, 3), np.float32)
    depth = np.full((8, 8), 1.0, np.float32)
    depth[:4] = 20.0
    out = degrade(image, "haze", generator(), severity=3, depth=depth)
    assert out[:4].min() > out[4:].max() + 0.2


def test_unknown_names_and_severities_say_what_to_type() -> None:
    image, _ = picture()
    with pytest.raises(UsageError, match="did you mean 'mix-b'"):
        degrade(image, "mixb", generator())
    with pytest.raises(UsageError, match="severity 6"):
        degrade(image, "noise", generator(), severity=6)
