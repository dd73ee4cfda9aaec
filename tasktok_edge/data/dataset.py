"""Training batches of cached scenes. Which frames a step sees depends on the seed and the step alone, so a run resumes."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Draw = tuple[int, int, bool]  # frame, version of its degradation, mirrored or not


class SceneDataset(Dataset[dict[str, Tensor]]):
    """One sample: clean and degraded (3, S, S) uint8, and the labels of the three tasks."""

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        i, version, mirrored = draw
        a = self.arrays
        flip = slice(None, None, -1) if mirrored else slice(None)
        boxes = a["boxes"][i].astype(np.float32)
        if mirrored:
            boxes = np.stack(
                [a["clean"].shape[2] - boxes[:, 2], boxes[:, 1], a["clean"].shape[2] - boxes[:, 0], boxes[:, 3]], 1
            )
        return {
            "clean": _chw(a["clean"][i][:, flip]),
            "degraded": _chw(a["degraded"][i, version][:, flip]),
            "label": torch.tensor(int(a["label"][i])),
            "semantic": torch.from_numpy(np.array(a["semantic"][i][:, flip])).long(),
            "boxes": torch.from_numpy(boxes),
            "box_labels": torch.from_numpy(np.array(a["box_labels"][i])),
        }


class StepSampler(Sampler[list[Draw]]):
    """Batches of draws for steps `start` to `steps`, each from a generator seeded by (seed, step)."""

    def __init__(self, *, frames: int, versions: int, batch: int, seed: int, start: int, steps: int) -> None:
        self.frames, self.versions, self.batch, self.seed = frames, versions, batch, seed
        self.start, self.steps = start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.steps):
            rng = np.random.default_rng([self.seed, step])
            rows = rng.choice(self.frames, self.batch, replace=self.batch > self.frames)
            versions, mirrored = rng.integers(self.versions, size=self.batch), rng.random(self.batch) < 0.5
            yield [(int(i), int(v), bool(m)) for i, v, m in zip(rows, versions, mirrored, strict=True)]


def _chw(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def to_unit(images: Tensor) -> Tensor:
    """uint8 images to float in [0, 1], the scale every part of the model works at."""
    return images.float() / 255
