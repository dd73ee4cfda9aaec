"""A procedural world with labels: textured backgrounds, several kinds of shaded objects that occlude each other and move.

Everything is drawn from a seed by NumPy and OpenCV: the same split, index, size and time give the same frame, always.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.data.background import Background, draw_background, make_background
from tasktok_edge.data.shapes import KINDS, outline

Split = Literal["train", "val", "test"]
SPLIT_IDS: dict[str, int] = {"train": 1, "val": 2, "test": 3}
CLASS_LABELS = KINDS
SEG_LABELS = ("background", *KINDS)
TEXTURES = ("plain", "stripes", "checker", "speckle")
MIN_VISIBLE_SHARE, MIN_VISIBLE_AREA = 0.35, 0.0015  # of the object, of the frame: less than that has no box
SWAY_RATE = 1.5  # radians a second
_SHIFT = 4  # fractional bits of polygon corners, so that edges fall between pixels


@dataclass(frozen=True)
class ObjectSpec:
    """One object; lengths are fractions of the frame's side, angles radians, velocity and spin per second."""

    kind: str
    centre: tuple[float, float]  # x, y
    radius: float
    angle: float
    colour: tuple[float, float, float]  # RGB in [0, 1]
    second: tuple[float, float, float]
    texture: str
    frequency: float
    depth: float  # metres
    velocity: tuple[float, float]
    spin: float


@dataclass(frozen=True)
class Scene:
    """Objects from far to near before a background, under one light. The last object is the one the frame is about."""

    seed: tuple[int, ...]
    objects: tuple[ObjectSpec, ...]
    light: tuple[float, float, float]  # unit vector towards the light, z towards the camera
    background: Background


@dataclass(frozen=True)
class Frame:
    """A picture and its labels."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    label: int  # index in KINDS of the dominant object
    semantic: NDArray[np.uint8]  # (H, W): 0 background, else kind + 1
    instances: NDArray[np.uint8]  # (H, W): 0 background, else 1 + index in scene.objects
    boxes: NDArray[np.float32]  # (n, 4) xyxy pixels of what is visible
    box_labels: NDArray[np.int64]  # (n,) index in KINDS
    depth: NDArray[np.float32]  # (H, W) metres


def make_scene(split: Split, index: int) -> Scene:
    """Draw scene `index` of a split; splits never share a seed."""
    seed = (SPLIT_IDS[split], index)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    tilt, turn = rng.uniform(0.3, 1.1), rng.uniform(0, 2 * np.pi)
    light = (float(np.sin(tilt) * np.cos(turn)), float(np.sin(tilt) * np.sin(turn)), float(np.cos(tilt)))
    extras = [_draw_object(rng, radius=rng.uniform(0.09, 0.15), spread=0.4) for _ in range(int(rng.integers(1, 4)))]
    extras.sort(key=lambda o: -o.depth)
    main = _draw_object(rng, radius=rng.uniform(0.2, 0.3), spread=0.2, depth=rng.uniform(1.2, 2.0))
    return Scene(seed, (*extras, main), light, make_background(rng))


def _draw_object(rng: np.random.Generator, *, radius: float, spread: float, depth: float | None = None) -> ObjectSpec:
    colour, second = _vivid(rng), _vivid(rng)
    x, y = 0.5 + rng.uniform(-spread, spread, 2)
    vx, vy = rng.normal(0, 0.12, 2)
    return ObjectSpec(
        kind=KINDS[rng.integers(len(KINDS))],
        centre=(float(x), float(y)),
        radius=float(radius),
        angle=float(rng.uniform(0, 2 * np.pi)),
        colour=colour,
        second=second,
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        frequency=float(rng.uniform(3, 8)),
        depth=float(rng.uniform(2.2, 5.0) if depth is None else depth),
        velocity=(float(vx), float(vy)),
        spin=float(rng.normal(0, 0.8)),
    )


def _vivid(rng: np.random.Generator) -> tuple[float, float, float]:
    """A saturated colour of any hue, independent of the kind."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.55, 1.0), rng.uniform(0.55, 1.0)]]], np.float32)
    r, g, b = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    return float(r), float(g), float(b)


def render(scene: Scene, *, size: int = 256, time: float = 0.0) -> Frame:
    """Draw the scene at `time` seconds as a square frame of `size` pixels."""
    image, depth = draw_background(scene.background, size=size, time=time)
    instances = np.zeros((size, size), np.uint8)
    areas = np.zeros(len(scene.objects) + 1)
    for number, spec in enumerate(scene.objects, 1):
        areas[number] = _draw(image, depth, instances, spec, scene.light, number, time)
    kinds = np.array([0, *(KINDS.index(o.kind) + 1 for o in scene.objects)], np.uint8)
    boxes, labels = [], []
    for number in range(1, len(scene.objects) + 1):
        seen = instances == number
        area = int(np.count_nonzero(seen))
        if area < MIN_VISIBLE_SHARE * areas[number] or area < MIN_VISIBLE_AREA * size * size:
            continue
        x, y, width, height = cv2.boundingRect(seen.view(np.uint8))
        boxes.append((x, y, x + width, y + height))
        labels.append(int(kinds[number]) - 1)
    return Frame(
        image=np.clip(np.rint(image * 255), 0, 255).astype(np.uint8),
        label=int(kinds[-1]) - 1,
        semantic=kinds[instances],
        instances=instances,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        box_labels=np.array(labels, np.int64),
        depth=depth,
    )


def render_clip(scene: Scene, n_frames: int, *, size: int = 256, fps: float = 15.0) -> list[Frame]:
    """Draw the first `n_frames` of a clip; objects move and spin, the camera pans. Frame 0 is the still."""
    return [render(scene, size=size, time=i / fps) for i in range(n_frames)]


def _draw(
    image: NDArray[np.float32],
    depth: NDArray[np.float32],
    instances: NDArray[np.uint8],
    spec: ObjectSpec,
    light: tuple[float, float, float],
    number: int,
    time: float,
) -> int:
    """Draw one object and its shadow in place; returns its area in pixels if nothing stood before it."""
    size = len(image)
    sway = np.sin(SWAY_RATE * time) / SWAY_RATE  # starts at the velocity and comes back: clips never empty out
    cx = (spec.centre[0] + spec.velocity[0] * sway) * size
    cy = (spec.centre[1] + spec.velocity[1] * sway) * size
    radius, angle = spec.radius * size, spec.angle + spec.spin * time
    margin = int(radius * 1.35) + 3  # room for the shadow
    left, top = int(np.floor(cx)) - margin, int(np.floor(cy)) - margin
    side = 2 * margin + 1
    mask = np.zeros((side, side), np.uint8)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = [
        np.rint((points @ turn * radius + (cx - left, cy - top)) * 2**_SHIFT).astype(np.int32) for points in outline(spec.kind)
    ]
    cv2.fillPoly(mask, corners, 255, cv2.LINE_AA, _SHIFT)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    if x0 >= x1 or y0 >= y1:
        return int(np.count_nonzero(mask > 127))
    here = (slice(y0, y1), slice(x0, x1))
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))

    blur = max(radius * 0.12, 1.0)
    shift = np.array([[1, 0, -light[0] * radius * 0.22], [0, 1, -light[1] * radius * 0.22]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (side, side)), (0, 0), blur)
    image[here] *= 1 - shadow[part][..., None].astype(np.float32) * (0.45 / 255)

    surface, bulge = _surface(spec, mask, light, centre=(cx - left, cy - top), radius=radius, angle=angle)
    alpha = mask[part][..., None].astype(np.float32) / 255
    image[here] += alpha * (surface[part] - image[here])
    solid = mask[part] > 127
    instances[here][solid] = number
    depth[here][solid] = spec.depth - 0.3 * spec.radius * bulge[part][solid]
    return int(np.count_nonzero(mask > 127))


def _surface(
    spec: ObjectSpec,
    mask: NDArray[np.uint8],
    light: tuple[float, float, float],
    *,
    centre: tuple[float, float],
    radius: float,
    angle: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the shaded colour (side, side, 3) and how far the surface bulges to the camera (side, side), in [0, 1]."""
    side = len(mask)
    axis = np.arange(side, dtype=np.float32)
    x, y = np.meshgrid((axis - centre[0]) / radius, (axis - centre[1]) / radius)
    u = x * np.cos(angle) + y * np.sin(angle)
    v = y * np.cos(angle) - x * np.sin(angle)
    if spec.kind == "ball":
        bulge = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
        nx, ny, nz = x, y, bulge
    else:  # a flat face with a bevelled rim
        bulge = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (0.22 * radius), 1).astype(np.float32)
        bulge = cv2.GaussianBlur(bulge, (0, 0), max(0.04 * radius, 0.6))
        nx, ny = -cv2.Sobel(bulge, cv2.CV_32F, 1, 0), -cv2.Sobel(bulge, cv2.CV_32F, 0, 1)
        nz = np.ones_like(bulge)
        scale = radius / 40  # the same bevel at every resolution
        nx, ny = nx * scale, ny * scale
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
    lambert = np.clip((nx * light[0] + ny * light[1] + nz * light[2]) / length, 0, 1)
    if spec.texture == "stripes":
        mix = (np.sin(u * spec.frequency * 2) > 0.2).astype(np.float32)
    elif spec.texture == "checker":
        mix = (np.sin(u * spec.frequency) * np.sin(v * spec.frequency) > 0).astype(np.float32)
    elif spec.texture == "speckle":
        mix = (np.sin(u * 17.3 + 4 * np.sin(v * 11.1)) * np.sin(v * 19.7 + 3 * np.sin(u * 7.7)) > 0.35).astype(np.float32)
    else:
        mix = np.zeros_like(u)
    first, second = np.array(spec.colour, np.float32), np.array(spec.second, np.float32)
    colour = first + (0.7 * mix)[..., None] * (second - first)
    shade = 0.35 + 0.75 * lambert
    return (colour * shade[..., None]).astype(np.float32), bulge.astype(np.float32)
