"""TaskTok's data sets, one a task: ImageNet for cls, VOC2012 for det and seg.

A sample is a dict of tensors: `clean` and `degraded` (3, S, S) float32 RGB, nominally in [0, 1], and
cls: `label` int64 scalar;
seg: `semantic` (S, S) int64, 255 ignored (evaluation does not crop: (H, W) instead of (S, S) for all three);
det: `boxes` (n, 4) float32 xyxy pixels, `box_labels` (n,) int64 in 1 to 20, `valid_size` (2,) int64, height and width before
the padding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tasktok_edge.data.degrade import DEGRADATIONS, Image, degrade, to_float, to_uint8
from tasktok_edge.data.folders import (
    ClassFolder,
    Picture,
    Split,
    VocList,
    class_folder,
    imagenet,
    load_boxes,
    load_mask,
    load_pair,
    load_picture,
    picture_size,
    require_pairs,
    train_classes,
    voc_list,
)
from tasktok_edge.data.geometry import (
    OFFICIAL,
    Sizes,
    for_cls,
    for_det,
    for_seg,
    long_side_size,
    resize_mask,
    scale_boxes,
    short_side_size,
)
from tasktok_edge.errors import unknown_word
from tasktok_edge.frames import pad_to

DEFAULT_SEVERITY = 3
Sample = dict[str, Tensor]
Task = Literal["cls", "det", "seg"]
TASKS: tuple[Task, ...] = ("cls", "det", "seg")
# First word of every seed here and in steps.py, so that no two purposes draw the same numbers.
TRAINING_STREAM, EVALUATION_STREAM, ORDER_STREAM, TASK_STREAM = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample: its position in the data set, and the epoch, which chooses the random numbers of training."""

    index: int
    epoch: int = 0


@dataclass(frozen=True)
class Training:
    """Random geometry; degraded on the fly and not rounded. The numbers depend on (seed, epoch, index)."""

    seed: int = 7777
    degradation: str = "mix-b"

    def __post_init__(self) -> None:
        _require_degradation(self.degradation)


@dataclass(frozen=True)
class Evaluation:
    """Fixed geometry; degraded on the fly and rounded to 8 bits, as stored pairs are. The numbers depend on (seed, index)."""

    seed: int = 231
    degradation: str = "mix-b"
    severity: int = 3

    def __post_init__(self) -> None:
        _require_degradation(self.degradation)


@dataclass(frozen=True)
class Paired:
    """Stored evaluation pairs: `folder`/gt and `folder`/lq hold PNGs in the fixed geometry, those of det not yet padded.

    Their names are those of the pictures: <wnid>/<name>.png below gt for ImageNet, <id>.png for VOC2012.
    """

    folder: Path


Source: TypeAlias = Training | Evaluation | Paired
Listing = TypeVar("Listing", ClassFolder, VocList)


class _TaskDataset(Dataset[Sample], Generic[Listing]):
    """What the three have in common: a listing, where the degraded picture comes from, and the sizes."""

    def __init__(self, pictures: Listing, source: Source, *, sizes: Sizes = OFFICIAL) -> None:
        if isinstance(source, Paired):
            require_pairs(source.folder, pictures.names)
        self.pictures: Listing = pictures
        self.source, self.sizes = source, sizes

    def __len__(self) -> int:
        return len(self.pictures.names)


class ClsDataset(_TaskDataset[ClassFolder]):
    """Pictures of class folders; the label is the position of the folder."""

    def __getitem__(self, draw: Draw) -> Sample:
        source, name = self.source, str(self.pictures.names[draw.index])
        if isinstance(source, Paired):
            clean, degraded = _stored(source, name, (self.sizes.image, self.sizes.image))
        else:
            rng = _generator(source, "cls", draw)
            image = for_cls(load_picture(self.pictures.root / name), self.sizes, _of_geometry(source, rng))
            clean, degraded = _degraded(source, image, rng)
        return {"clean": _chw(clean), "degraded": _chw(degraded), "label": torch.tensor(int(self.pictures.labels[draw.index]))}


class SegDataset(_TaskDataset[VocList]):
    """Pictures and class masks of VOC2012."""

    def __getitem__(self, draw: Draw) -> Sample:
        source, path = self.source, self.pictures.picture(draw.index)
        mask = load_mask(self.pictures.mask(draw.index), size=picture_size(path))
        if isinstance(source, Paired):
            mask = resize_mask(mask, short_side_size(mask.shape, self.sizes.seg_short))
            clean, degraded = _stored(source, self.pictures.names[draw.index], mask.shape)
        else:
            rng = _generator(source, "seg", draw)
            image, mask = for_seg(load_picture(path), mask, self.sizes, _of_geometry(source, rng))
            clean, degraded = _degraded(source, image, rng)
        semantic = torch.from_numpy(np.ascontiguousarray(mask, np.int64))
        return {"clean": _chw(clean), "degraded": _chw(degraded), "semantic": semantic}


class DetDataset(_TaskDataset[VocList]):
    """Pictures and boxes of VOC2012, padded to a square *after* degradation, at the right and the bottom: boxes stay."""

    def __getitem__(self, draw: Draw) -> Sample:
        source, side, path = self.source, self.sizes.image, self.pictures.picture(draw.index)
        size = picture_size(path)
        corners, labels = load_boxes(self.pictures.annotation(draw.index), size=size)
        if isinstance(source, Paired):
            boxes = scale_boxes(corners, size, side)
            clean, degraded = _stored(source, self.pictures.names[draw.index], long_side_size(size, side))
        else:
            rng = _generator(source, "det", draw)
            image, boxes = for_det(load_picture(path), corners, self.sizes, _of_geometry(source, rng))
            clean, degraded = _degraded(source, image, rng)
        return {
            "clean": _chw(pad_to(clean, side)),
            "degraded": _chw(pad_to(degraded, side)),
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(labels),
            "valid_size": torch.tensor(clean.shape[:2]),
        }


TaskDataset: TypeAlias = ClsDataset | SegDataset | DetDataset


def open_dataset(task: Task, root: Path, source: Source, *, split: Split | None = None, sizes: Sizes = OFFICIAL) -> TaskDataset:
    """Open the data of a task below the root of ImageNet (cls) or VOC2012 (det, seg).

    The split is train for `Training`, else val, unless given: a token order is searched on train in the fixed geometry.
    """
    split = split or ("train" if isinstance(source, Training) else "val")
    if task == "cls":
        if isinstance(source, Paired):
            # Pairs have their own pictures in gt; the official quick start comes with nothing else.
            return ClsDataset(class_folder(source.folder / "gt", classes=train_classes(root)), source, sizes=sizes)
        return ClsDataset(imagenet(root, split), source, sizes=sizes)
    pictures = voc_list(root, task, split)
    return SegDataset(pictures, source, sizes=sizes) if task == "seg" else DetDataset(pictures, source, sizes=sizes)


def _require_degradation(name: str) -> None:
    if name not in DEGRADATIONS:
        raise unknown_word("degradation", name, DEGRADATIONS)


def _generator(source: Training | Evaluation, task: Task, draw: Draw) -> np.random.Generator:
    if isinstance(source, Training):
        return np.random.default_rng([TRAINING_STREAM, source.seed, TASKS.index(task), draw.epoch, draw.index])
    return np.random.default_rng([EVALUATION_STREAM, source.seed, TASKS.index(task), draw.index])


def _of_geometry(source: Training | Evaluation, rng: np.random.Generator) -> np.random.Generator | None:
    return rng if isinstance(source, Training) else None


def _degraded(source: Training | Evaluation, image: Picture, rng: np.random.Generator) -> tuple[Image, Image]:
    clean = to_float(np.ascontiguousarray(image))
    severity = source.severity if isinstance(source, Evaluation) else DEFAULT_SEVERITY
    degraded = degrade(clean, source.degradation, rng, severity=severity)
    return clean, degraded if isinstance(source, Training) else to_float(to_uint8(degraded))


def _stored(source: Paired, name: str, size: tuple[int, ...]) -> tuple[Image, Image]:
    clean, degraded = load_pair(source.folder, name, size=(size[0], size[1]))
    return to_float(clean), to_float(degraded)


def _chw(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
