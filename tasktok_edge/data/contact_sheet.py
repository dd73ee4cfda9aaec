"""One picture of one scene: what is rendered, what it is labelled with, and what each degradation makes of it."""

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.degrade import DEGRADATIONS, degrade, to_float, to_uint8
from tasktok_edge.data.scenes import CLASS_LABELS, Frame, make_scene, render_clip
from tasktok_edge.errors import UsageError

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

COLUMNS = 6
CELL_PX = 256
CAPTION_PX = 22
SHOWN_SEVERITIES = (1, 3, 5)
CLIP_FRAMES = 4  # beside the still
CLIP_FPS = 4.0  # far enough apart that the motion shows
MIX_B_DRAWS = 4
FIXED = ("mix-a", "mix-b")  # recipes without a severity
INK, PAPER = (235, 235, 235), 28


def _hues(indices: NDArray[np.uint8], count: int) -> Picture:
    """Return a colour for each index 1..count, and dark grey for 0."""
    table = np.full((256, 1, 3), 40, np.uint8)
    steps = np.arange(count)
    hsv = np.stack([steps * 180 // max(count, 1), np.full(count, 190), np.full(count, 245)], axis=1).astype(np.uint8)
    table[1 : count + 1] = cv2.cvtColor(hsv[:, None], cv2.COLOR_HSV2RGB)
    return np.asarray(table[indices, 0], np.uint8)


def _depth(depth: NDArray[np.float32]) -> Picture:
    """Return near as bright; even steps in 1 / metres, as a stereo camera sees them."""
    near = 1 / depth
    scaled = np.rint(255 * (near - near.min()) / max(float(np.ptp(near)), 1e-6)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1], np.uint8)


def _boxes(frame: Frame) -> Picture:
    picture = frame.image.copy()
    for box, kind in zip(frame.boxes, frame.box_labels, strict=True):
        x0, y0, x1, y1 = (int(v) for v in box)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)
        place = (x0 + 2, y0 - 4 if y0 > 14 else y0 + 13)
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # an outline keeps it legible on any colour
            cv2.putText(picture, CLASS_LABELS[kind], place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)
    return picture


def _captioned(picture: Picture, caption: str) -> Picture:
    cell = np.full((CELL_PX + CAPTION_PX, CELL_PX, 3), PAPER, np.uint8)
    cell[CAPTION_PX:] = picture
    cv2.putText(cell, caption, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return cell


def _cells(index: int) -> list[tuple[str, Picture]]:
    """Return the captions and pictures in reading order."""
    scene = make_scene("val", index)
    clip = render_clip(scene, 1 + CLIP_FRAMES, size=CELL_PX, fps=CLIP_FPS)
    frame = clip[0]
    cells: list[tuple[str, Picture]] = [
        (f"clean: {CLASS_LABELS[frame.label]}", frame.image),
        ("semantic", _hues(frame.semantic, len(CLASS_LABELS))),
        ("instances", _hues(frame.instances, len(scene.objects))),
        (f"depth {frame.depth.min():.1f}-{frame.depth.max():.1f} m", _depth(frame.depth)),
        ("boxes", _boxes(frame)),
    ]
    cells += [(f"{i / CLIP_FPS:.2f} s", moved.image) for i, moved in enumerate(clip[1:], 1)]
    image = to_float(frame.image)

    def degraded(name: str, severity: int, draw: int) -> Picture:
        rng = np.random.default_rng([index, draw])
        return to_uint8(degrade(image, name, rng, severity=severity, depth=frame.depth))

    cells.append(("mix-a", degraded("mix-a", 3, 0)))
    cells += [(f"mix-b, draw {draw}", degraded("mix-b", 3, draw)) for draw in range(MIX_B_DRAWS)]
    cells += [
        (f"{name} {severity}", degraded(name, severity, 0))
        for name in DEGRADATIONS
        if name not in FIXED
        for severity in SHOWN_SEVERITIES
    ]
    return cells


def contact_sheet(path: Path, *, index: int = 0) -> None:
    """Write the sheet of validation scene `index` to `path`; the suffix says the format, such as .png or .jpg."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{path} is neither .png nor .jpg: give the sheet one of these suffixes")
    cells = [_captioned(picture, caption) for caption, picture in _cells(index)]
    blank = np.full_like(cells[0], PAPER)
    cells += [blank] * (math.ceil(len(cells) / COLUMNS) * COLUMNS - len(cells))
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    done, code = cv2.imencode(path.suffix.lower(), np.vstack(rows)[..., ::-1])
    if not done:
        raise UsageError(f"OpenCV could not code the sheet as {path.suffix}: give a name that ends in .png")
    path.write_bytes(code.tobytes())
