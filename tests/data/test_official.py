"""The data sets of the three tasks: what a sample holds, what it depends on, and pairs that equal what they were made from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasktok_edge.data.degrade import degrade, to_float, to_uint8
from tasktok_edge.data.folders import imagenet, load_picture
from tasktok_edge.data.geometry import Sizes, for_cls
from tasktok_edge.data.official import (
    TASKS,
    DetDataset,
    Draw,
    Evaluation,
    Paired,
    Sample,
    Source,
    Task,
    TaskDataset,
    Training,
    open_dataset,
)
from tasktok_edge.errors import UsageError
from tests.data.helpers_trees import frames, write_imagenet, write_voc

SMALL = Sizes.scaled(64)
Opener = Callable[..., TaskDataset]


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Opener:
    root = tmp_path_factory.mktemp("trees")
    write_imagenet(root / "imagenet")
    write_voc(root / "voc")

    def open_small(task: Task, source: Source) -> TaskDataset:
        return open_dataset(task, root / ("imagenet" if task == "cls" else "voc"), source, sizes=SMALL)

    return open_small


def assert_equal(one: Sample, other: Sample) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("task", TASKS)
def test_training_samples(opener: Opener, task: Task) -> None:
    data = opener(task, Training())
    assert len(data) == (6 if task == "cls" else 4)
    for index in range(len(data)):
        sample = data[Draw(index)]
        for key in ("clean", "degraded"):
            assert sample[key].shape == (3, 64, 64)
            assert sample[key].dtype == torch.float32
            assert -1e-6 <= sample[key].min() < sample[key].max() <= 1 + 1e-6
        gap = (sample["clean"] - sample["degraded"]).abs().mean()
        assert 0.001 < gap < 0.3  # degraded, and of the same picture
        if task == "cls":
            assert sample["label"].dtype == torch.int64
            assert sample["label"].shape == ()
            assert int(sample["label"]) == index // 2
        elif task == "seg":
            assert sample["semantic"].shape == (64, 64)
            assert sample["semantic"].dtype == torch.int64
            assert set(np.unique(sample["semantic"]).tolist()) <= {*range(21), 255}
        else:
            n = len(sample["boxes"])
            assert n == len(frames("train", 4)[index].boxes) > 0
            assert sample["boxes"].dtype == torch.float32
            assert sample["boxes"].shape == (n, 4)
            assert sample["box_labels"].dtype == torch.int64
            assert sample["box_labels"].shape == (n,)
            assert sample["box_labels"].min() >= 1
            height, width = sample["valid_size"].tolist()
            assert max(height, width) == 64
            assert (sample["boxes"][:, 2] <= width).all()
            assert (sample["boxes"][:, 3] <= height).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_seed_epoch_and_index_alone(opener: Opener, task: Task) -> None:
    data = opener(task, Training(seed=3))
    first = data[Draw(1, 5)]
    data[Draw(0, 2)]
    np.random.seed(0)
    torch.manual_seed(0)
    assert_equal(first, data[Draw(1, 5)])
    assert_equal(first, opener(task, Training(seed=3))[Draw(1, 5)])
    for other in (data[Draw(1, 6)], opener(task, Training(seed=4))[Draw(1, 5)]):
        assert not torch.equal(first["degraded"], other["degraded"])


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_is_the_same_in_every_epoch_and_of_8_bits(opener: Opener, task: Task) -> None:
    data = opener(task, Evaluation())
    assert len(data) == 3
    sample = data[Draw(2)]
    assert_equal(sample, data[Draw(2, 9)])
    levels = sample["degraded"] * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert not torch.equal(sample["degraded"], opener(task, Evaluation(seed=232))[Draw(2)]["degraded"])
    levels = opener(task, Training())[Draw(2)]["degraded"] * 255
    assert (levels - levels.round()).abs().max() > 0.1  # training is not rounded


def test_evaluation_is_the_geometry_and_then_the_degradation(opener: Opener) -> None:
    data = opener("cls", Evaluation(degradation="mix-a"))
    listing = data.pictures
    clean = for_cls(load_picture(listing.root / str(listing.names[1])), SMALL)  # type: ignore[union-attr]
    degraded = to_uint8(degrade(to_float(clean), "mix-a", np.random.default_rng()))
    sample = data[Draw(1)]
    np.testing.assert_array_equal((sample["clean"] * 255).round().byte().numpy().transpose(1, 2, 0), clean)
    np.testing.assert_array_equal((sample["degraded"] * 255).round().byte().numpy().transpose(1, 2, 0), degraded)


def test_detection_is_padded_after_degradation(opener: Opener) -> None:
    data = opener("det", Training())
    padded = 0
    for index in range(len(data)):
        sample = data[Draw(index)]
        height, width = sample["valid_size"].tolist()
        if width < 64:
            padded += 1
            for key in ("clean", "degraded"):
                beyond = sample[key][:, :, width : 2 * width - 1]
                mirror = sample[key][:, :, :width].flip(-1)[:, :, 1:]
                assert torch.equal(beyond, mirror[:, :, : beyond.shape[2]])
        if height < 64:
            padded += 1
            assert torch.equal(sample["degraded"][:, height], sample["degraded"][:, height - 2])
    assert padded >= 2


def test_boxes_follow_the_mirrored_picture(opener: Opener) -> None:
    det = opener("det", Evaluation())
    assert isinstance(det, DetDataset)
    flipped = set()
    for epoch in range(8):
        mirrored = DetDataset(det.pictures, Training(), sizes=SMALL)[Draw(0, epoch)]
        plain = det[Draw(0)]
        width = int(plain["valid_size"][1])
        turned = not torch.equal(mirrored["clean"], plain["clean"])
        flipped.add(turned)
        expected = plain["boxes"].clone()
        if turned:
            assert torch.equal(mirrored["clean"][:, :, :width], plain["clean"][:, :, :width].flip(-1))
            expected[:, [0, 2]] = width - plain["boxes"][:, [2, 0]]
        assert torch.equal(mirrored["boxes"], expected)
    assert flipped == {False, True}


def store(data: TaskDataset, folder: Path) -> None:
    """Write the pairs of an evaluation set in the official layout."""
    for index in range(len(data)):
        sample = data[Draw(index)]
        height, width = sample.get("valid_size", torch.tensor(sample["clean"].shape[1:])).tolist()
        for half, key in (("gt", "clean"), ("lq", "degraded")):
            path = (folder / half / str(data.pictures.names[index])).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = (sample[key][:, :height, :width] * 255).round().byte()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.mark.parametrize("task", TASKS)
def test_stored_pairs_equal_what_they_were_made_from(opener: Opener, task: Task, tmp_path: Path) -> None:
    data = opener(task, Evaluation())
    store(data, tmp_path)
    pairs = opener(task, Paired(tmp_path))
    assert len(pairs) == len(data)
    for index in range(len(data)):
        one, other = pairs[Draw(index)], data[Draw(index)]
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("task", TASKS)
def test_pairs_that_are_missing_or_of_another_size_are_named(opener: Opener, task: Task, tmp_path: Path) -> None:
    data = opener(task, Evaluation())
    store(data, tmp_path)
    victim = (tmp_path / "lq" / str(data.pictures.names[0])).with_suffix(".png")
    Image.new("RGB", (9, 9)).save(victim)
    pairs = opener(task, Paired(tmp_path))
    with pytest.raises(UsageError, match=rf"{victim.name} is 9x9: expected \d+x\d+"):
        pairs[Draw(0)]
    pairs[Draw(1)]
    victim.unlink()
    with pytest.raises(UsageError, match=f"lacks {victim.name}"):
        opener(task, Paired(tmp_path))


def test_the_official_quick_start_needs_no_other_pictures(tmp_path: Path) -> None:
    for half in ("gt", "lq"):
        for wnid in ("n2", "n1"):
            path = tmp_path / "val-mixb" / half / wnid / "a.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (64, 64), (10, 10, 10)).save(path)
    data = open_dataset("cls", tmp_path, Paired(tmp_path / "val-mixb"), sizes=SMALL)
    assert [int(data[Draw(i)]["label"]) for i in range(len(data))] == [0, 1]
    assert data.pictures.names.tolist() == ["n1/a.png", "n2/a.png"]  # type: ignore[union-attr]
    for wnid in ("n0", "n1", "n2"):  # now n1 would be class 1
        (tmp_path / "train" / wnid).mkdir(parents=True)
    with pytest.raises(UsageError, match="gt lacks the class folder n0"):
        open_dataset("cls", tmp_path, Paired(tmp_path / "val-mixb"), sizes=SMALL)


def test_the_token_order_may_use_training_pictures_in_fixed_geometry(opener: Opener, tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    data = open_dataset("cls", tmp_path, Evaluation(), split="train", sizes=SMALL)
    assert len(data) == len(imagenet(tmp_path, "train").names) == 6


@pytest.mark.parametrize("source", [Training, Evaluation])
def test_unknown_degradations_are_refused_at_once(source: type) -> None:
    with pytest.raises(UsageError, match="did you mean 'mix-b'"):
        source(degradation="mixb")
