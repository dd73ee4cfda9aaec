"""Frames to judge on: the same ones whichever part is read, with what is known of them; and what is none is told."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tasktok_edge.data.degrade import DEGRADATIONS
from tasktok_edge.data.sources import Degradation, Scenes, Source, degradations, open_source, write_frames
from tasktok_edge.errors import UsageError
from tests.data.helpers_trees import write_imagenet, write_voc

NOISE = Degradation("noise", 2)
TASKS = ("cls", "seg", "det")


def opened(data: Path | None, *degraded: Degradation, n: int = 4, paired: Path | None = None) -> Source:
    return open_source(data, n=n, degraded=degraded, seed=7, image_size=32, tasks=TASKS, paired=paired)


def same_whichever_part_is_read(source: Source) -> None:
    whole = list(source.items(range(len(source))))
    assert len(whole) == len(source)
    for i in (len(source) - 1, 0):
        (alone,) = source.items([i])
        assert alone.name == whole[i].name and alone.group == whole[i].group
        assert np.array_equal(alone.frame, whole[i].frame)


def test_scenes_have_all_labels_and_degradations_take_turns() -> None:
    source = Scenes(5, degradations(["noise", "blur"], [1, 5]))
    same_whichever_part_is_read(source)
    items = list(source.items(range(5)))
    assert [item.group for item in items] == ["noise 1", "noise 5", "blur 1", "blur 5", "noise 1"]
    first = items[0]
    assert first.truth is not None and first.clean is not None and first.tasks == TASKS
    assert first.truth.semantic is not None and first.truth.semantic.shape == first.frame.shape[:2]
    assert not np.array_equal(first.clean, first.frame)


def test_degradations_are_named_or_told() -> None:
    assert [str(d) for d in degradations(["mix-b", "snow"], [2, 4])] == ["mix-b", "snow 2", "snow 4"]
    assert len(degradations(["all"], [3])) == len(DEGRADATIONS) - 2
    with pytest.raises(UsageError, match="did you mean 'snow'"):
        degradations(["snw"], [3])
    with pytest.raises(UsageError, match="severity 6 is not one of 1"):
        degradations(["snow"], [6])


def test_official_trees_have_their_own_labels(tmp_path: Path) -> None:
    imagenet = opened(write_imagenet(tmp_path / "imagenet"), NOISE)
    assert imagenet.tasks == ("cls",) and imagenet.labels == {"cls": 3} and len(imagenet) == 3
    assert [item.truth.label for item in imagenet.items(range(3)) if item.truth is not None] == [0, 1, 2]
    same_whichever_part_is_read(imagenet)
    voc = opened(write_voc(tmp_path / "voc"), n=2)
    assert voc.labels == {"seg": 21, "det": 20} and "mix-b" in voc.told
    for item in voc.items(range(len(voc))):
        assert item.truth is not None and item.clean is not None and item.clean.shape == item.frame.shape
        if item.tasks == ("seg",):
            assert item.truth.semantic is not None and item.truth.semantic.shape == item.frame.shape[:2]
        else:
            assert item.truth.boxes is not None and item.truth.box_labels is not None
            assert item.truth.box_labels.min() >= 0 and item.truth.boxes[:, 2].max() <= item.frame.shape[1]
    same_whichever_part_is_read(voc)


def test_pictures_as_they_are_or_degraded_and_pairs(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", Scenes(3, [NOISE]))
    as_they_are = opened(tmp_path / "frames")
    assert not as_they_are.labels and as_they_are.tasks == TASKS
    (first,) = as_they_are.items([0])
    assert first.clean is None and first.truth is None and first.name == "scene-0.png"
    (scene,) = Scenes(3, [NOISE]).items([0])
    assert np.array_equal(first.frame, scene.frame)  # PNGs lose nothing
    degraded = opened(tmp_path / "frames", NOISE)
    same_whichever_part_is_read(degraded)
    (item,) = degraded.items([1])
    assert item.clean is not None and not np.array_equal(item.clean, item.frame) and item.group == "noise 2"
    for half in ("gt", "lq"):
        write_frames(tmp_path / "pairs" / half, Scenes(2, [NOISE]))
    (pair,) = opened(tmp_path / "pairs").items([1])
    assert pair.group == "pairs" and pair.clean is not None
    (tmp_path / "pairs" / "gt" / "scene-1.png").unlink()
    with pytest.raises(UsageError, match=r"gt lacks scene-1.png"):
        opened(tmp_path / "pairs")


def test_frames_of_a_video(tmp_path: Path) -> None:
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 32))
    for i in range(10):
        writer.write(np.full((32, 48, 3), 20 * i, np.uint8))
    writer.release()
    video = opened(file)
    same_whichever_part_is_read(video)
    assert [item.name for item in video.items(range(4))] == ["frame 0", "frame 3", "frame 6", "frame 9"]
    assert [round(float(item.frame.mean()), -1) for item in video.items([1, 3])] == [60, 180]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "neither a folder nor a video"),
        ("nothing.mp4", "there is no video"),
        ("text.mp4", "is no video"),
    ],
)
def test_what_is_no_data_is_told(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UsageError, match=told):
        opened(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no picture"):
        opened(tmp_path / "empty")
    with pytest.raises(UsageError, match="--paired needs --data"):
        opened(None, paired=tmp_path)
