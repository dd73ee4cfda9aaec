"""Small trees in the official layouts, drawn from the project's own scenes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tasktok_edge.data.folders import VOC_CLASSES
from tasktok_edge.data.scenes import Frame, Split, make_scene, render

WNIDS = ("n01440764", "n01443537", "n01484850")  # the folders of kinds 0, 1 and 2
SIZES = ((96, 96), (72, 96), (96, 60))  # height, width: the first corner of a square scene


def cut(frame: Frame, height: int, width: int) -> Frame:
    """The upper left part of a scene; boxes that end up narrower than 4 pixels are gone."""
    boxes = np.minimum(frame.boxes, np.array([width, height, width, height], np.float32))
    kept = (boxes[:, 2:] - boxes[:, :2]).min(1) >= 4
    return replace(
        frame,
        image=np.ascontiguousarray(frame.image[:height, :width]),
        semantic=np.ascontiguousarray(frame.semantic[:height, :width]),
        boxes=boxes[kept],
        box_labels=frame.box_labels[kept],
    )


def frames(split: Split, n: int) -> list[Frame]:
    """`n` frames of three shapes, each with at least one box; the first cut scenes of the split that have one."""
    found: list[Frame] = []
    index = 0
    while len(found) < n:
        frame = cut(render(make_scene(split, index), size=96), *SIZES[len(found) % len(SIZES)])
        found += [frame] if len(frame.boxes) else []
        index += 1
    return found


def write_imagenet(root: Path, *, train: int = 2, val: int = 1) -> Path:
    """`root`/{train,val}/<wnid>/*.JPEG with so many pictures a class, each in the folder of what it shows."""
    for split, n in (("train", train), ("val", val)):
        missing = [n] * len(WNIDS)
        index = 0
        while any(missing):
            scene = make_scene(split, index)  # type: ignore[arg-type]
            frame = render(scene, size=96)
            if frame.label < len(WNIDS) and missing[frame.label]:
                folder = root / split / WNIDS[frame.label]
                folder.mkdir(parents=True, exist_ok=True)
                height, width = SIZES[index % len(SIZES)]
                Image.fromarray(frame.image[:height, :width]).save(folder / f"{split}_{index:05d}.JPEG", quality=95)
                missing[frame.label] -= 1
            index += 1
    return root


def annotation(frame: Frame) -> str:
    """VOC's XML: corners from 1, inclusive; kind k of the scenes plays the part of VOC's class k."""
    height, width = frame.semantic.shape
    things = []
    for (x0, y0, x1, y1), kind in zip(frame.boxes.astype(int).tolist(), frame.box_labels, strict=True):
        corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        things.append(
            f"<object><name>{VOC_CLASSES[kind]}</name><difficult>1</difficult>{part}<bndbox>{corners}</bndbox></object>"
        )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><folder>VOC2012</folder>{size}{''.join(things)}</annotation>"


def write_mask(path: Path, semantic: np.ndarray) -> None:
    mask = Image.fromarray(semantic, "L").convert("P")
    mask.putdata(semantic.ravel().tolist())  # type: ignore[no-untyped-call]
    mask.putpalette([i * 37 % 256 for i in range(768)])  # colours that are not the indices
    mask.save(path)


def write_voc(root: Path, *, train: int = 4, val: int = 3) -> Path:
    """A VOC2012 tree at `root`/VOCdevkit/VOC2012; returns the tree. Every mask has a strip of 255."""
    tree = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (tree / folder).mkdir(parents=True)
    number = 0
    for split, n in (("train", train), ("val", val)):
        names = []
        for frame in frames(split, n):  # type: ignore[arg-type]
            name = f"2012_{number:06d}"
            Image.fromarray(frame.image).save(tree / "JPEGImages" / f"{name}.jpg", quality=95)
            semantic = frame.semantic.copy()
            semantic[:2] = 255
            write_mask(tree / "SegmentationClass" / f"{name}.png", semantic)
            (tree / "Annotations" / f"{name}.xml").write_text(annotation(frame))
            names.append(name)
            number += 1
        for task in ("Segmentation", "Main"):
            (tree / "ImageSets" / task / f"{split}.txt").write_text("\n".join(names) + "\n")
    return tree
