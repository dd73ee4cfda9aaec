"""Scenes: reproducible, split apart, and labelled with what is really in the picture."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from tasktok_edge.data.background import draw_background
from tasktok_edge.data.scenes import (
    CLASS_LABELS,
    MIN_VISIBLE_AREA,
    SEG_LABELS,
    SPLIT_IDS,
    Frame,
    Scene,
    Split,
    make_scene,
    render,
    render_clip,
)
from tasktok_edge.data.shapes import KINDS, outline

SIZE = 96
INDICES = range(12)
FIELDS = ("image", "semantic", "instances", "boxes", "box_labels", "depth")


@lru_cache
def drawn(index: int) -> tuple[Scene, Frame]:
    scene = make_scene("val", index)
    return scene, render(scene, size=SIZE)


def assert_same(one: Frame, other: Frame) -> None:
    assert one.label == other.label
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def test_labels_name_the_kinds() -> None:
    assert len(KINDS) == len(set(KINDS)) == 8
    assert CLASS_LABELS == KINDS
    assert SEG_LABELS[0] == "background"
    assert SEG_LABELS[1:] == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_outlines_are_finite_and_of_about_radius_one(kind: str) -> None:
    reach = max(float(np.hypot(*contour.T).max()) for contour in outline(kind))
    assert 0.8 < reach < 1.3


def test_same_seed_same_frame() -> None:
    for index in (0, 7):
        assert make_scene("val", index) == make_scene("val", index)
        assert_same(render(make_scene("val", index), size=SIZE), render(make_scene("val", index), size=SIZE))


def test_splits_share_no_scene() -> None:
    assert set(SPLIT_IDS) == set(get_args(Split))
    assert len(set(SPLIT_IDS.values())) == 3
    scenes = [make_scene(split, index) for split in get_args(Split) for index in range(50)]
    assert len({scene.seed for scene in scenes}) == len(scenes)
    # The pictures too: their random numbers do not come from the split's name alone.
    assert len({scene.background.seed for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("index", INDICES)
def test_shapes_types_and_ranges(index: int) -> None:
    _, frame = drawn(index)
    assert frame.image.shape == (SIZE, SIZE, 3)
    assert frame.image.dtype == np.uint8
    for field in (frame.semantic, frame.instances):
        assert field.shape == (SIZE, SIZE)
        assert field.dtype == np.uint8
    assert frame.depth.shape == (SIZE, SIZE)
    assert frame.depth.dtype == np.float32
    assert np.isfinite(frame.depth).all()
    assert frame.depth.min() > 0
    assert frame.boxes.dtype == np.float32
    assert frame.boxes.shape[1] == 4
    assert frame.box_labels.dtype == np.int64
    assert len(frame.boxes) == len(frame.box_labels)
    assert frame.image.std() > 10  # a picture, not a flat field


@pytest.mark.parametrize("index", INDICES)
def test_semantic_is_the_kind_of_the_instance(index: int) -> None:
    scene, frame = drawn(index)
    kinds = np.array([0, *(KINDS.index(spec.kind) + 1 for spec in scene.objects)])
    assert frame.instances.max() <= len(scene.objects)
    np.testing.assert_array_equal(frame.semantic, kinds[frame.instances])


@pytest.mark.parametrize("index", INDICES)
def test_boxes_are_tight_around_what_is_visible(index: int) -> None:
    scene, frame = drawn(index)
    found: dict[tuple[float, ...], int] = {}
    for number, spec in enumerate(scene.objects, 1):
        rows, columns = np.nonzero(frame.instances == number)
        if len(rows):
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            found[tuple(float(v) for v in box)] = KINDS.index(spec.kind)
            if len(rows) < MIN_VISIBLE_AREA * SIZE * SIZE:
                assert not (frame.boxes == np.array(box)).all(1).any(), "a sliver has a box"
    for box, label in zip(frame.boxes.tolist(), frame.box_labels.tolist(), strict=True):
        assert found[tuple(box)] == label


@pytest.mark.parametrize("index", INDICES)
def test_the_label_is_the_largest_and_nearest_object(index: int) -> None:
    scene, frame = drawn(index)
    areas = np.bincount(frame.instances.ravel(), minlength=len(scene.objects) + 1)[1:]
    assert areas.argmax() == len(scene.objects) - 1
    assert CLASS_LABELS[frame.label] == scene.objects[-1].kind
    assert frame.label in frame.box_labels
    depths = [spec.depth for spec in scene.objects]
    assert depths == sorted(depths, reverse=True)
    solid = frame.instances > 0
    assert frame.depth[solid].mean() < frame.depth[~solid].mean()


def test_every_kind_is_drawn_about_as_often() -> None:
    labels = [KINDS.index(make_scene("train", index).objects[-1].kind) for index in range(400)]
    counts = np.bincount(labels, minlength=len(KINDS))
    assert counts.min() > 25  # 50 expected; 4 deviations of a fair draw below


def test_colour_does_not_give_the_kind_away() -> None:
    objects = [make_scene("train", index).objects[-1] for index in range(400)]
    means = [np.mean([spec.colour for spec in objects if spec.kind == kind], axis=0) for kind in KINDS]
    # Each mean is over about 50 colours of deviation 0.3, so 0.04 of chance.
    assert np.ptp(np.array(means), axis=0).max() < 0.25


def test_a_clip_starts_with_the_still_and_moves() -> None:
    scene = make_scene("val", 1)
    clip = render_clip(scene, 4, size=SIZE, fps=4)
    assert_same(clip[0], render(scene, size=SIZE))
    assert_same(clip[3], render(scene, size=SIZE, time=0.75))
    moved = [np.count_nonzero(a.instances != b.instances) for a, b in pairwise(clip)]
    assert min(moved) > 10
    assert all(frame.label == clip[0].label for frame in clip)


def test_objects_out_of_the_frame_are_no_fault() -> None:
    scene = make_scene("val", 1)
    gone = replace(scene, objects=tuple(replace(spec, centre=(5.0, -5.0)) for spec in scene.objects))
    frame = render(gone, size=SIZE)
    assert frame.boxes.shape == (0, 4)
    assert not frame.instances.any()


# From 64 on: the antialiased rim adds half a pixel all round, which is a tenth of an object at 32.
@pytest.mark.parametrize("size", [65, 128, 192])
def test_a_scene_is_the_same_layout_at_any_size(size: int) -> None:
    scene, reference = drawn(2)
    frame = render(scene, size=size)
    assert frame.image.shape == (size, size, 3)
    assert frame.label == reference.label
    share = np.count_nonzero(frame.instances) / size**2
    assert share == pytest.approx(np.count_nonzero(reference.instances) / SIZE**2, abs=0.03)


def test_backgrounds_have_the_spectrum_of_natural_images() -> None:
    size, slopes = 128, []
    window = np.hanning(size)[:, None] * np.hanning(size)[None]  # without it the borders alone fall as 1/f^2
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]
    ring = np.rint(np.hypot(fy, fx) * size).astype(int)
    for index in range(20):
        image, _ = draw_background(make_scene("val", index).background, size=size, time=0.0)
        grey = image.mean(axis=2)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
        mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
        f = np.arange(3, 40)  # beyond the window's own width, below the antialiasing
        slopes.append(np.polyfit(np.log(f), np.log(mean[f]), 1)[0])
    # Natural images fall as 1/f^2 on average; single ones scatter by about one around it.
    assert -2.9 < np.mean(slopes) < -1.7
    assert min(slopes) > -3.8
    assert max(slopes) < -1.0
