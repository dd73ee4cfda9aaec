"""Frames to judge a device on, with what is known of them: scenes, official data sets, pictures, pairs, a video.

A source is a list of which any part can be read, in any process, with the same numbers: degradations are drawn from the seed
and the frame's position.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tasktok_edge.data.degrade import DEGRADATIONS, SEVERITIES, degrade, to_float, to_uint8
from tasktok_edge.data.folders import SUFFIXES, VOC_CLASSES, ClassFolder, Picture, load_picture, require_pairs
from tasktok_edge.data.geometry import Sizes
from tasktok_edge.data.heldout import held_out
from tasktok_edge.data.official import EVALUATION_STREAM, Draw, Evaluation, Paired, Task, TaskDataset, open_dataset
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.evidence import Truth
from tasktok_edge.model.config import preset

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
FIXED = ("mix-a", "mix-b")  # degradations without a severity
PICTURES_STREAM = 5  # of the seeds here, beside official.py's


@dataclass(frozen=True)
class Degradation:
    """What is done to clean frames; severity 1 (slight) to 5 (severe), which Mix-A and Mix-B do not have."""

    name: str
    severity: int = 3

    def __str__(self) -> str:
        return self.name if self.name in FIXED else f"{self.name} {self.severity}"


@dataclass(frozen=True, eq=False)
class Item:
    """A frame (H, W, 3) uint8 RGB as a camera gives it, what is known of it, and the tasks that it can be judged on."""

    name: str
    frame: Picture
    clean: Picture | None
    truth: Truth | None
    tasks: tuple[str, ...]
    group: str


class Source(Protocol):
    """`labels` are the number of labels of each task whose truth is known; none where answers can only be compared."""

    told: str
    tasks: tuple[str, ...]
    labels: Mapping[str, int]

    def __len__(self) -> int: ...

    def items(self, chosen: Sequence[int]) -> Iterator[Item]: ...


def degradations(names: Sequence[str], severities: Sequence[int]) -> tuple[Degradation, ...]:
    """Every combination that is asked for; `all` is all with severities. UsageError for an unknown word or severity."""
    listed = [d for d in DEGRADATIONS if d not in FIXED] if "all" in names else names
    for name in listed:
        if name not in DEGRADATIONS:
            raise unknown_word("degradation", name, [*DEGRADATIONS, "all"])
    for severity in severities:
        if severity not in SEVERITIES:
            raise UsageError(f"severity {severity} is not one of 1 (slight) to 5 (severe)")
    found = [Degradation(name, s) for name in listed for s in (severities if name not in FIXED else severities[:1])]
    return tuple(dict.fromkeys(found))


def spread(length: int, n: int) -> list[int]:
    """Take `n` of `length` positions, evenly spread, as lists are often sorted by class.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    """
    return sorted({round(i) for i in np.linspace(0, length - 1, min(n, length)).tolist()})


class Scenes:
    """Held-out scenes of the split `test` (heldout.py), with the labels of all three tasks."""

    def __init__(self, n: int, degraded: Sequence[Degradation]) -> None:
        self.n, self.degraded = n, degraded
        known = preset("scenes-server").tasks
        self.tasks: tuple[str, ...] = tuple(known)
        self.labels: Mapping[str, int] = {task: len(config.labels) for task, config in known.items()}
        self.told = f"held-out scenes, {', '.join(map(str, degraded))}"

    def __len__(self) -> int:
        return self.n

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        for i in chosen:
            how = self.degraded[i % len(self.degraded)]
            (held,) = held_out(1, degradation=how.name, severity=how.severity, start=i)
            truth = Truth(held.truth.label, held.truth.semantic, held.truth.boxes, held.truth.box_labels)
            yield Item(f"scene {i}", held.degraded, held.truth.image, truth, self.tasks, str(how))


class Official:
    """ImageNet's validation pictures (cls) or VOC2012's (seg, det), `n` of each task, in the official evaluation's geometry."""

    def __init__(
        self, root: Path, *, n: int, degraded: Sequence[Degradation], seed: int, image_size: int, paired: Path | None
    ) -> None:
        voc = any((place / "JPEGImages").is_dir() for place in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"))
        named: tuple[Task, ...] = ("seg", "det") if voc else ("cls",)
        sizes, self.degraded = Sizes.scaled(image_size), degraded
        self.sets: dict[str, list[TaskDataset]] = {}
        self.places: list[tuple[str, int]] = []
        for task in named:
            ways = [Paired(paired)] if paired else [Evaluation(seed, how.name, how.severity) for how in degraded]
            first = open_dataset(task, root, ways[0], sizes=sizes)
            others = [_otherwise(first, way) for way in ways[1:]]
            self.sets[task] = [first, *others]
            self.places += [(task, i) for i in spread(len(first), n)]
        self.tasks: tuple[str, ...] = named
        in_voc = {"seg": len(VOC_CLASSES) + 1, "det": len(VOC_CLASSES)}
        self.labels: Mapping[str, int] = in_voc if voc else {"cls": _n_classes(self.sets["cls"][0])}
        how = f"pairs in {paired}" if paired else f"{', '.join(map(str, degraded))}, seed {seed}"
        self.told = f"{'VOC2012' if voc else 'ImageNet'} val in {root}, {how}"

    def __len__(self) -> int:
        return len(self.places)

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        for i in chosen:
            task, index = self.places[i]
            data = self.sets[task][i % len(self.sets[task])]
            sample = data[Draw(index)]
            height, width = sample["valid_size"].tolist() if "valid_size" in sample else sample["clean"].shape[1:]
            clean, degraded = (_bytes(sample[key])[:height, :width] for key in ("clean", "degraded"))
            group = str(self.degraded[i % len(self.sets[task])]) if isinstance(data.source, Evaluation) else "pairs"
            yield Item(f"{task} {data.pictures.names[index]}", degraded, clean, _truth(sample), (task,), group)


def _otherwise(data: TaskDataset, way: Evaluation | Paired) -> TaskDataset:
    return type(data)(data.pictures, way, sizes=data.sizes)  # type: ignore[arg-type]


def _n_classes(data: TaskDataset) -> int:
    return len(data.pictures.classes) if isinstance(data.pictures, ClassFolder) else 0


def _bytes(image: Tensor) -> Picture:
    return to_uint8(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _truth(sample: Mapping[str, Tensor]) -> Truth:
    if "label" in sample:
        return Truth(label=int(sample["label"]))
    if "semantic" in sample:
        return Truth(semantic=sample["semantic"].numpy().astype(np.uint8))
    return Truth(boxes=sample["boxes"].numpy(), box_labels=sample["box_labels"].numpy() - 1)  # 1 to 20 there


class Pictures:
    """A folder of pictures without labels, as they are or degraded: answers can be compared, not judged."""

    labels: Mapping[str, int] = {}

    def __init__(
        self, folder: Path, *, n: int, degraded: Sequence[Degradation], seed: int, tasks: tuple[str, ...], paired: bool = False
    ) -> None:
        self.folder, self.degraded, self.seed, self.tasks, self.paired = folder, degraded, seed, tasks, paired
        inside = folder / "lq" if paired else folder
        names = sorted(str(p.relative_to(inside)) for p in inside.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not names:
            raise UsageError(f"{inside} holds no picture ({', '.join(SUFFIXES)})")
        self.names = [names[i] for i in spread(len(names), n)]
        if paired:
            require_pairs(folder, self.names)
        self.told = f"pictures in {folder}" + (", pairs" if paired else _how(degraded, seed))

    def __len__(self) -> int:
        return len(self.names)

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        for i in chosen:
            name = self.names[i]
            if self.paired:
                frame = load_picture((self.folder / "lq" / name).with_suffix(".png"))
                clean = load_picture((self.folder / "gt" / name).with_suffix(".png"))
                if clean.shape != frame.shape:
                    raise UsageError(f"{name}: lq is {_size(frame)} and gt {_size(clean)}, a pair has one size")
                yield Item(name, frame, clean, None, self.tasks, "pairs")
            else:
                yield _degraded(name, load_picture(self.folder / name), i, self.degraded, self.seed, self.tasks)


class Video:
    """Frames of a video file, evenly spread, as they are or degraded."""

    labels: Mapping[str, int] = {}

    def __init__(self, file: Path, *, n: int, degraded: Sequence[Degradation], seed: int, tasks: tuple[str, ...]) -> None:
        self.file, self.degraded, self.seed, self.tasks = file, degraded, seed, tasks
        capture, length = _opened(file), 0
        while capture.grab():  # what a file says of its length is often wrong
            length += 1
        if not length:
            raise UsageError(f"{file} is no video that OpenCV reads: give one such as MP4 (H.264), MKV or AVI")
        self.places = spread(length, n)
        self.told = f"frames of {file}" + _how(degraded, seed)

    def __len__(self) -> int:
        return len(self.places)

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        wanted = {self.places[i]: i for i in chosen}
        capture = _opened(self.file)
        for place in range(max(wanted, default=-1) + 1):
            if not capture.grab():
                raise UsageError(f"{self.file} ends before frame {place}: it changed meanwhile")
            if place in wanted:
                frame = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
                yield _degraded(f"frame {place}", np.asarray(frame, np.uint8), place, self.degraded, self.seed, self.tasks)


def _opened(file: Path) -> cv2.VideoCapture:
    if not file.is_file():
        raise UsageError(f"there is no video at {file}")
    return cv2.VideoCapture(str(file))


def _degraded(
    name: str, picture: Picture, index: int, degraded: Sequence[Degradation], seed: int, tasks: tuple[str, ...]
) -> Item:
    if not degraded:
        return Item(name, picture, None, None, tasks, "as they are")
    how = degraded[index % len(degraded)]
    rng = np.random.default_rng([EVALUATION_STREAM, seed, PICTURES_STREAM, index])
    frame = to_uint8(degrade(to_float(np.ascontiguousarray(picture)), how.name, rng, severity=how.severity))
    return Item(name, frame, picture, None, tasks, str(how))


def _how(degraded: Sequence[Degradation], seed: int) -> str:
    return f", {', '.join(map(str, degraded))}, seed {seed}" if degraded else ""


def _size(picture: NDArray[np.uint8]) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def open_source(
    data: Path | None,
    *,
    n: int,
    degraded: Sequence[Degradation],
    seed: int,
    image_size: int,
    tasks: tuple[str, ...],
    paired: Path | None = None,
) -> Source:
    """Open what `data` is: None for scenes, a video file, VOC2012's or ImageNet's tree, pairs in gt and lq, or pictures.

    Without `degraded` scenes and official data get Mix-B, and pictures and videos are taken as they are. Raises UsageError for
    what is none of these.
    """
    fallback = degraded or (Degradation("mix-b"),)
    if data is None:
        if paired:
            raise UsageError("--paired needs --data: the tree whose labels the pairs have")
        return Scenes(n, fallback)
    if data.suffix.lower() in VIDEOS and not data.is_dir():
        return Video(data, n=n, degraded=degraded, seed=seed, tasks=tasks)
    if not data.is_dir():
        raise UsageError(f"--data {data} is neither a folder nor a video ({', '.join(VIDEOS)})")
    if paired or _has(data, "JPEGImages", "VOC2012", "VOCdevkit", "val"):
        return Official(data, n=n, degraded=fallback, seed=seed, image_size=image_size, paired=paired)
    return Pictures(data, n=n, degraded=degraded, seed=seed, tasks=tasks, paired=_has(data, "lq") and _has(data, "gt"))


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_dir() for name in names)


def write_frames(folder: Path, source: Source) -> None:
    """Write every frame of a source as a PNG, losslessly, under its name: what a device can be given."""
    if folder.is_file() or folder.suffix.lower() == ".png":
        raise UsageError(f"--out {folder} must be a folder for frames")
    folder.mkdir(parents=True, exist_ok=True)
    for item in source.items(range(len(source))):
        cv2.imwrite(str(folder / f"{item.name.replace(' ', '-')}.png"), cv2.cvtColor(item.frame, cv2.COLOR_RGB2BGR))
