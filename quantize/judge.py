"""What a changed model loses against the floating-point one on labelled frames; unchanged stages before it aren't run again."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasktok_edge.data.cache import CacheSpec, build_cache, open_cache
from tasktok_edge.data.dataset import SceneDataset, to_unit
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.ptq import CALIBRATION_FRAMES
from tasktok_edge.train.evaluate import tally

JUDGING_FRAMES = 200
BATCH = 25
STAGES = ("prerestorer", "tokenizer.encoder", "refiner", "tokenizer.decoder", "task_nets")
PSNR_LIMIT_DB = 100.0  # beyond lies the noise of fp32 itself
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Made:
    """What a model makes of a batch of frames, by task from the switch on; a task without a network has no answers."""

    image: Tensor  # (B, 3, S, S), behind the pre-restorer
    z: Tensor  # (B, N, C)
    tokens: dict[str, Tensor]  # (B, N, C), behind the switch
    frames: dict[str, Tensor]  # (B, 3, S, S)
    seen: dict[str, Tensor]  # what the task networks are given, the frames or what they are read out of
    answers: dict[str, tuple[Tensor, ...]]  # the task network's own, raw


@dataclass(frozen=True)
class Verdict:
    """How a model did: each task's metric in points of 100, and by what was compared, the PSNR against the reference.

    `db` is of "tokens", "frames" and every task's raw answers, of what was computed at all; the peak is the reference's largest
    magnitude, 1 for frames; of several tensors or tasks the worst counts.
    """

    points: dict[str, float]
    db: dict[str, float]


class Judge:
    """Holds labelled frames, and what `reference` makes of them.

    `arrays` are those of a `SceneDataset`. Metrics are of this process alone, without Accelerate: that keeps one precision a
    process, which is that of the fine-tuning behind it.
    """

    def __init__(self, reference: TaskTok, arrays: Arrays) -> None:
        reference = fuse(reference)  # an int8 model's layers are those of the fused one
        self.config = reference.config
        self.tasks = list(reference.task_nets)
        device = next(reference.parameters()).device
        data = SceneDataset(arrays)
        self.batches: list[dict[str, Tensor]] = []
        for first in range(0, len(data), BATCH):
            samples = [data[i, 0, False] for i in range(first, min(first + BATCH, len(data)))]
            self.batches.append({key: torch.stack([s[key] for s in samples]).to(device) for key in samples[0]})
        self.frames = len(data)
        self.wanted = [_make(reference, to_unit(b["degraded"]), list(self.config.tasks)) for b in self.batches]
        self.points = {task: self._points(task, [made.answers[task] for made in self.wanted]) for task in self.tasks}

    def __call__(self, model: TaskTok, changed: str = "") -> Verdict:
        """Judge `model`, which differs from the reference in the layer or part `changed` alone; everywhere by default."""
        stage = next((s for s in STAGES if changed == s or changed.startswith(f"{s}.")), STAGES[0])
        tasks = [changed.split(".")[1]] if changed.startswith(f"{STAGES[-1]}.") else list(self.config.tasks)
        found = [
            _make(model, to_unit(b["degraded"]), tasks, stage=stage, before=wanted)
            for b, wanted in zip(self.batches, self.wanted, strict=True)
        ]
        points = {t: self._points(t, [made.answers[t] for made in found]) for t in tasks if t in self.tasks}
        db: dict[str, float] = {}
        first = STAGES.index(stage)
        if first <= STAGES.index("refiner"):
            db["tokens"] = min(psnr_db([m.tokens[t] for m in found], [m.tokens[t] for m in self.wanted]) for t in tasks)
        if first <= STAGES.index("tokenizer.decoder"):
            db["frames"] = min(
                psnr_db([m.frames[t] for m in found], [m.frames[t] for m in self.wanted], peak=1.0) for t in tasks
            )
        for t in points:
            pairs = zip(
                zip(*(m.answers[t] for m in found), strict=True),
                zip(*(m.answers[t] for m in self.wanted), strict=True),
                strict=True,
            )
            db[t] = min(psnr_db(got, want) for got, want in pairs)
        return Verdict(points, db)

    def _points(self, task: str, answers: Sequence[tuple[Tensor, ...]]) -> float:
        counts = tally(self.config.tasks[task])
        for batch, made, wanted in zip(self.batches, answers, self.wanted, strict=True):
            counts.add(cast(TaskNet, _Answered(made)), wanted.frames[task], batch)
        return 100 * counts.value()


class _Answered:
    """Stands in for a task network whose answers to a batch are there: a tally asks for them image by image, or at once."""

    def __init__(self, answers: tuple[Tensor, ...]) -> None:
        self.answers, self.given = answers, 0

    def __call__(self, images: Tensor) -> Any:
        rows = slice(self.given, self.given + len(images))
        self.given = rows.stop
        return self.answers[0][rows] if len(self.answers) == 1 else tuple(a[rows] for a in self.answers)


@torch.inference_mode()
def _make(
    model: TaskTok, degraded: Tensor, tasks: Sequence[str], *, stage: str = STAGES[0], before: Made | None = None
) -> Made:
    """Run `model` from `stage` on; `before` has what the stages before it made."""
    first = STAGES.index(stage)
    image = before.image if before and first > 0 else model.prerestorer(degraded)
    z = before.z if before and first > 1 else model.tokens(image)
    tokens = before.tokens if before and first > 2 else {t: model.replace_selected(z, t) for t in tasks}
    if before and first > 3:
        frames, seen = before.frames, before.seen
    else:
        shown = {t: model.shown(tokens[t], t) for t in tasks}
        frames, seen = ({t: both[i] for t, both in shown.items()} for i in (0, 1))
    raw = {t: model.task_net(t)(seen[t]) for t in tasks if t in model.task_nets}
    return Made(image, z, tokens, frames, seen, {t: a if isinstance(a, tuple) else (a,) for t, a in raw.items()})


def psnr_db(got: Sequence[Tensor], want: Sequence[Tensor], *, peak: float | None = None) -> float:
    """PSNR of batches against batches, within ±100 dB, -100 dB for NaN; without a `peak` that is the largest magnitude wanted.

    >>> round(psnr_db([torch.tensor([0.5, 0.6])], [torch.tensor([0.5, 0.5])], peak=1.0), 2)
    23.01
    """
    error = sum(float((a - b).square().sum(dtype=torch.float64)) for a, b in zip(got, want, strict=True))
    error /= sum(b.numel() for b in want)
    peak = peak or max(float(b.abs().max()) for b in want) or 1.0
    if error == 0:
        return PSNR_LIMIT_DB
    figure = 10 * math.log10(peak**2 / error) if math.isfinite(error) else -PSNR_LIMIT_DB
    return max(min(figure, PSNR_LIMIT_DB), -PSNR_LIMIT_DB)


def judging_frames(folder: Path, size: int, *, n: int = JUDGING_FRAMES, workers: int = 2) -> Iterator[Doing | Arrays]:
    """Scenes of the split `val` behind those that calibrate, kept in `folder`; yields progress, and the arrays last."""
    spec = CacheSpec("val", CALIBRATION_FRAMES + n, size)
    try:
        arrays = open_cache(folder, spec)
    except FileNotFoundError:
        for done in build_cache(folder, spec, workers=workers):
            yield Doing("frames", done, spec.n)
        arrays = open_cache(folder, spec)
    yield {name: values[CALIBRATION_FRAMES:] for name, values in arrays.items()}
