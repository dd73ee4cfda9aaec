"""What a user would pick instead of restoring for a task: nothing, a bicubic filter, or a pre-restorer for the eye."""

from collections.abc import Callable, Generator, Mapping, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from tasktok_edge.data.sources import Degradation, Scenes
from tasktok_edge.evidence import Observation, meter, observe
from tasktok_edge.model.checkpoint import Checkpoint, has_oracles, load_oracles
from tasktok_edge.progress import Doing
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.scores import Predict, without_restoration

Frame = NDArray[np.uint8]
Answering = Callable[[Frame, Sequence[str]], Mapping[str, Answer]]  # a frame and tasks to the answers by task
ByTask = dict[str, dict[str, float]]


def alternatives(checkpoint: Checkpoint) -> dict[str, Predict]:
    """By name; their task networks are those that were trained on clean frames. None where the checkpoint has no such ones."""
    if not has_oracles(checkpoint.path):
        return {}
    alone = without_restoration(load_oracles(checkpoint.path), checkpoint.model)
    eye = Eye(checkpoint)
    return {
        "no restoration": alone,
        "bicubic": lambda frame, task: alone(bicubic(frame), task),
        "pre-restorer alone": lambda frame, task: alone(eye.restore(frame, task), task),
    }


def bicubic(frame: Frame) -> Frame:
    """Halved by averaging, doubled by bicubic interpolation, which takes some noise away; (H, W, 3) uint8 to the same."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


class Eye(Reference):
    """The pre-restorer of a model alone, in the place of the whole: a restorer of pictures, no tokens."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)

    @torch.inference_mode()
    def run_raw(self, functions: Sequence[str], batch: Frame) -> dict[str, NDArray[np.float32]]:
        """What its picture is, by the names of the restoring functions that are asked for."""
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        restored = self.model.prerestorer(image).permute(0, 2, 3, 1).numpy()
        return {name.replace("/", "_"): restored for name in functions}


def accuracy(
    named: Mapping[str, Answering], tasks: Sequence[str], kinds: Mapping[str, str], *, n: int
) -> Generator[Doing, None, ByTask]:
    """Each task's metric of everyone on `n` held-out scenes under Mix-B, by task and name; yields progress."""
    seen: dict[str, dict[str, list[Observation]]] = {task: {name: [] for name in named} for task in tasks}
    source = Scenes(n, [Degradation("mix-b")])
    for i, item in enumerate(source.items(range(n)), 1):
        assert item.truth is not None
        for name, answers in named.items():
            for task, answer in answers(item.frame, tasks).items():
                seen[task][name].append(observe(answer, item.truth))
        yield Doing("accuracy", i, n)
    once = np.ones((1, n))
    return {
        task: {name: float(meter(kinds[task], found)(once)[0]) for name, found in by_name.items() if found}
        for task, by_name in seen.items()
    }
