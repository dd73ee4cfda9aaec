"""Rendered and degraded scenes kept on disk as memory-mapped arrays, so that training never waits for the renderer."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tasktok_edge.data.degrade import degrade, to_float, to_uint8
from tasktok_edge.data.scenes import SPLIT_IDS, Frame, Split, make_scene, render
from tasktok_edge.frames import resize

FRAME_SIZE = 256  # the camera's frame: scenes are rendered and degraded at this side, then resized for the model
MAX_BOXES = 8
_CHUNK = 32


@dataclass(frozen=True)
class CacheSpec:
    """What a cache holds: `n` frames of a split at side `size`, each with `versions` draws of one degradation."""

    split: Split
    n: int
    size: int
    versions: int = 1
    degradation: str = "mix-b"

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        n, s = self.n, self.size
        return {
            "clean": ((n, s, s, 3), "uint8"),
            "degraded": ((n, self.versions, s, s, 3), "uint8"),
            "label": ((n,), "int64"),
            "semantic": ((n, s, s), "uint8"),
            "boxes": ((n, MAX_BOXES, 4), "float32"),  # xyxy, pixels of the resized frame
            "box_labels": ((n, MAX_BOXES), "int64"),  # -1 where there is no box
        }


def degraded_frame(split: Split, index: int, name: str, *, version: int = 0, severity: int = 3) -> NDArray[np.uint8]:
    """Give the degraded camera frame (256, 256, 3) uint8 of a scene; the same numbers for the same arguments, always."""
    frame = render(make_scene(split, index), size=FRAME_SIZE)
    return degrade_scene(frame, split, index, name, version=version, severity=severity)


def degrade_scene(
    frame: Frame, split: Split, index: int, name: str, *, version: int = 0, severity: int = 3
) -> NDArray[np.uint8]:
    """The same for a frame that is rendered already."""
    rng = np.random.default_rng(np.random.SeedSequence([SPLIT_IDS[split], index, 1, version]))
    return to_uint8(degrade(to_float(frame.image), name, rng, severity=severity, depth=frame.depth))


def open_cache(folder: Path, spec: CacheSpec) -> dict[str, NDArray[np.generic]]:
    """Map a finished cache read-only; FileNotFoundError when it was not built to the end or holds something else."""
    done = folder / "done.json"
    if not done.is_file() or json.loads(done.read_text()) != asdict(spec):
        raise FileNotFoundError(f"{folder} holds no cache of {spec}")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in spec.arrays}


def build_cache(folder: Path, spec: CacheSpec, *, workers: int = 2) -> Iterator[int]:
    """Render and degrade every frame of `spec` in processes; yields how many frames are done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    arrays = {
        name: open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
        for name, (shape, dtype) in spec.arrays.items()
    }
    starts = range(0, spec.n, _CHUNK)
    # spawn: a fork of a process whose engines hold threads waits for ever on their locks
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for start, rows in zip(starts, pool.map(_rows, [spec] * len(starts), starts), strict=True):
            for name, values in rows.items():
                arrays[name][start : start + len(values)] = values
            yield min(start + _CHUNK, spec.n)
    for array in arrays.values():
        array.flush()
    (folder / "done.json").write_text(json.dumps(asdict(spec)))


def _rows(spec: CacheSpec, start: int) -> dict[str, NDArray[np.generic]]:
    cv2.setNumThreads(1)
    stop = min(start + _CHUNK, spec.n)
    rows: dict[str, NDArray[np.generic]] = {
        name: np.zeros((stop - start, *shape[1:]), dtype) for name, (shape, dtype) in spec.arrays.items()
    }
    rows["box_labels"][...] = -1
    scale = spec.size / FRAME_SIZE
    for i, index in enumerate(range(start, stop)):
        frame = render(make_scene(spec.split, index), size=FRAME_SIZE)
        rows["clean"][i] = resize(frame.image, spec.size, spec.size)
        for version in range(spec.versions):
            degraded = degrade_scene(frame, spec.split, index, spec.degradation, version=version, severity=3)
            rows["degraded"][i, version] = resize(degraded, spec.size, spec.size)
        rows["label"][i] = frame.label
        # Nearest, at pixel centres: a label map has no values in between.
        rows["semantic"][i] = cv2.resize(frame.semantic, (spec.size, spec.size), interpolation=cv2.INTER_NEAREST_EXACT)
        n = min(len(frame.boxes), MAX_BOXES)
        rows["boxes"][i, :n] = frame.boxes[:n] * scale
        rows["box_labels"][i, :n] = frame.box_labels[:n]
    return rows
