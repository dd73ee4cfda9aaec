"""Pictures and labels on disk as the official TaskTok expects them: an ImageNet tree, a VOC2012 tree, stored pairs.

Everything that is wrong with a tree is a UsageError that names the file, what was expected there and what to do.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasktok_edge.errors import UsageError

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Mask = NDArray[np.uint8]  # (H, W): 0 background, 1 to 20 a class, 255 ignored
Split = Literal["train", "val"]

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
IGNORED = 255
FORMATS = ("JPEG", "PNG")  # whatever the suffix says; one picture of ImageNet is a PNG called .JPEG
SUFFIXES = (".jpeg", ".jpg", ".png")
MAX_PIXELS = 64_000_000  # more is no photograph of either data set, and would fill the memory
MAX_ASPECT = 64  # a strip becomes as many times longer when its short side is brought to 576
MAX_XML_BYTES = 1_000_000
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class ClassFolder:
    """Pictures in one folder a class. `names` are below `root`; an array, because a million Path objects take a gigabyte."""

    root: Path
    classes: tuple[str, ...]  # sorted; the label is the position
    names: NDArray[np.str_]  # (n,)
    labels: NDArray[np.int64]  # (n,)


@dataclass(frozen=True)
class VocList:
    """The pictures of one list of a VOC2012 tree."""

    tree: Path
    names: tuple[str, ...]  # such as 2007_000032

    def picture(self, index: int) -> Path:
        return self.tree / "JPEGImages" / f"{self.names[index]}.jpg"

    def mask(self, index: int) -> Path:
        return self.tree / "SegmentationClass" / f"{self.names[index]}.png"

    def annotation(self, index: int) -> Path:
        return self.tree / "Annotations" / f"{self.names[index]}.xml"


def imagenet(root: Path, split: Split) -> ClassFolder:
    """List `ROOT/train/<wnid>/*` or `ROOT/val/<wnid>/*`; where there is a train folder, val must have its classes."""
    return class_folder(root / split, classes=train_classes(root) if split == "val" else None)


def train_classes(root: Path) -> tuple[str, ...] | None:
    """The class folders of `ROOT/train`, whose positions are the labels; None where there is no such folder."""
    return _class_names(root / "train") if (root / "train").is_dir() else None


def class_folder(root: Path, *, classes: Sequence[str] | None = None) -> ClassFolder:
    """List the pictures of every class folder of `root`; with `classes`, exactly these folders must be there."""
    found = _class_names(root)
    if classes is not None and set(classes) != set(found):
        # A label is a position in the sorted folders: one more or less would shift all that follow.
        absent, extra = _some(set(classes) - set(found)), _some(set(found) - set(classes))
        what = f"lacks the class folder {absent}" if absent else f"has the class folder {extra}, which train lacks"
        raise UsageError(f"{root} {what}: train and val need the same folders, or every label would mean another class")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(found):
        entries = (entry.name for entry in os.scandir(root / name))  # a Path for each of a million would take a minute
        files = sorted(f for f in entries if f.lower().endswith(SUFFIXES) and not f.startswith("."))
        if not files:
            raise UsageError(f"{root / name} holds no picture ({', '.join(SUFFIXES)}): fill it, or unpack the data set again")
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    return ClassFolder(root, found, np.array(names), np.array(labels))


def _class_names(root: Path) -> tuple[str, ...]:
    _require_folder(root, "one folder a class, such as n01440764")
    names = tuple(sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")))
    if not names:
        raise UsageError(f"{root} holds no class folders: sort its pictures into one folder a class, such as n01440764")
    return names


def voc_tree(root: Path) -> Path:
    """Find the folder with JPEGImages: `root` itself, or VOC2012 or VOCdevkit/VOC2012 below it."""
    places = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    for place in places:
        if (place / "JPEGImages").is_dir():
            return place
    raise UsageError(
        f"no VOC2012 tree at {root}: looked for JPEGImages in {', '.join(map(str, places))}; unpack VOCtrainval there"
    )


def voc_list(root: Path, task: Literal["seg", "det"], split: Split) -> VocList:
    """List a split of ImageSets/Segmentation or ImageSets/Main; every picture and label in it must be there."""
    tree = voc_tree(root)
    path = tree / "ImageSets" / ("Segmentation" if task == "seg" else "Main") / f"{split}.txt"
    if not path.is_file():
        raise UsageError(f"{path} is missing: it must list the pictures of the split, an id a line; unpack VOCtrainval again")
    ids = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if not ids:
        raise UsageError(f"{path} lists no pictures: expected an id a line, such as 2007_000032; unpack VOCtrainval again")
    if bad := _some(i for i in ids if not re.fullmatch(r"[A-Za-z0-9_]+", i)):
        raise UsageError(f"{path} lists {bad}: expected ids such as 2007_000032, and nothing else on a line")
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png") if task == "seg" else ("Annotations", ".xml")):
        _require_files(tree / folder, [f"{i}{suffix}" for i in ids], f"which {path} lists")
    return VocList(tree, ids)


def picture_size(path: Path) -> tuple[int, int]:
    """Give height and width from the file's head."""
    with _opened(path) as image:
        return image.height, image.width


def load_picture(path: Path) -> Picture:
    """Read a picture as RGB; grey, palette and CMYK files are converted, an EXIF turn is not applied (upstream neither)."""
    with _opened(path) as image:
        return np.asarray(image.convert("RGB"))


def load_mask(path: Path, *, size: tuple[int, int]) -> Mask:
    """Read a palette PNG of class indices; `size` is the (height, width) of its picture."""
    with _opened(path) as image:
        if image.mode not in ("P", "L"):
            raise UsageError(
                f"{path} has the mode {image.mode}: expected a palette PNG whose indices are classes; don't recolour it"
            )
        mask = np.asarray(image)
    _require_size(path, mask, size, "its picture")
    if wrong := _some(str(v) for v in np.unique(mask) if v > len(VOC_CLASSES) and v != IGNORED):
        raise UsageError(
            f"{path} holds the class {wrong}: expected 0 to {len(VOC_CLASSES)}, or {IGNORED} for ignored; replace it"
        )
    return mask


def load_boxes(path: Path, *, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read VOC's XML: corners (n, 4) xmin, ymin, xmax, ymax, counted from 1, inclusive; and labels (n,) in 1 to 20.

    Difficult objects are kept. Corners are cut at the picture, whose (height, width) is `size`.
    """
    height, width = size
    boxes, labels = [], []
    for thing in _parse_xml(path).findall("object"):
        name = (thing.findtext("name") or "").strip()
        if name not in VOC_CLASSES:
            raise UsageError(
                f"{path} names an object {name!r}: expected one of VOC's {len(VOC_CLASSES)} classes; correct the name"
            )
        try:
            # Direct children only: a person's parts have boxes too. A few files of VOC2012 have fractions.
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{corner}") or "") for corner in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise UsageError(
                f"{path}: an object {name!r} lacks a number in bndbox/xmin, ymin, xmax, ymax; correct it"
            ) from None
        if not (x0 <= x1 and x1 >= 1 and x0 <= width and y0 <= y1 and y1 >= 1 and y0 <= height):
            raise UsageError(
                f"{path} has a box {x0:g}, {y0:g}, {x1:g}, {y1:g}: expected xmin, ymin, xmax, ymax inside the {width}x{height} "
                "picture, counted from 1; correct it"
            )
        boxes.append([int(max(x0, 1)), int(max(y0, 1)), int(min(x1, width)), int(min(y1, height))])
        labels.append(VOC_CLASSES.index(name) + 1)
    if not boxes:
        raise UsageError(f"{path} has no boxes: expected <object> with <bndbox> in <annotation>; take the picture off the list")
    return np.array(boxes, np.int64), np.array(labels, np.int64)


def require_pairs(folder: Path, names: Iterable[str]) -> None:
    """Check that `folder`/gt and `folder`/lq hold a PNG for every name (a relative path; its suffix does not count)."""
    wanted: dict[Path, list[str]] = {}
    for name in names:
        path = Path(name)
        wanted.setdefault(path.parent, []).append(f"{path.stem}.png")
    for half in ("gt", "lq"):
        _require_folder(folder / half, "the PNGs of the pairs: clean in gt, degraded in lq")
        for parent, files in wanted.items():
            _require_files(folder / half / parent, files, "a pair's half: generate the pairs again")


def load_pair(folder: Path, name: str, *, size: tuple[int, int]) -> tuple[Picture, Picture]:
    """Read the clean and the degraded half of a stored pair; both must be of `size`, (height, width) after the geometry."""
    halves = []
    for half in ("gt", "lq"):
        path = (folder / half / name).with_suffix(".png")
        picture = load_picture(path)
        _require_size(path, picture, size, "the evaluation geometry; generate the pairs for this image size")
        halves.append(picture)
    return halves[0], halves[1]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever Pillow throws at a damaged file, here or while the caller decodes it, becomes one sentence."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            short, long = sorted(image.size)
            if short * long > MAX_PIXELS or long > MAX_ASPECT * short:
                raise UsageError(
                    f"{path} is {image.width}x{image.height}: expected at most {MAX_PIXELS // 10**6} megapixels and sides of "
                    f"1:{MAX_ASPECT}; shrink or leave it out"
                )
            yield image
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: expected a picture; restore it, or unpack the data set again") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise UsageError(f"{path} cannot be read as a picture ({fault}): replace the file, or leave it out") from fault


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a DTD where the parser meets it, in any encoding: entities can only be declared in one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UsageError(f"a DTD ({name})")


def _parse_xml(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise UsageError(f"{path} is missing: expected VOC's XML of the picture; unpack VOCtrainval again")
    if path.stat().st_size > MAX_XML_BYTES:
        raise UsageError(f"{path} is larger than {MAX_XML_BYTES // 1000} kB: expected VOC's XML of one picture; replace it")
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(path.read_bytes())
        return parser.close()
    except (ElementTree.ParseError, UsageError, LookupError, ValueError) as fault:
        raise UsageError(f"{path} is not plain XML ({fault}): expected VOC's XML without a DTD; replace it") from fault


def _some(names: Iterable[str]) -> str:
    """The first few of `names`, sorted, and how many more; empty when there are none."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _require_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} is missing: it must hold {what}; check the path, or unpack the data set there")


def _require_files(folder: Path, names: Iterable[str], why: str) -> None:
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set[str]()
    if absent := _some(set(names) - present):
        raise UsageError(f"{folder} lacks {absent}, {why}")


def _require_size(path: Path, image: Picture, size: tuple[int, int], whose: str) -> None:
    if image.shape[:2] != size:
        height, width = image.shape[:2]
        raise UsageError(f"{path} is {width}x{height}: expected {size[1]}x{size[0]}, the size of {whose}")
